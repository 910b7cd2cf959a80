"""A raw prompt about one picture, for InternVL3-8B: a script for vLLM-Ascend, of which only the imports were changed.

VLLM_USE_MODELSCOPE=True PYTORCH_NPU_ALLOC_CONF=max_split_size_mb:256 python examples/ascend/single_image.py

On a machine without an NPU it runs too, on what is there. The sample picture ships with the package.
"""

from tilewise import LLM, SamplingParams
from tilewise.assets.image import ImageAsset

MODEL_PATH = "OpenGVLab/InternVL3-8B"

llm = LLM(
    model=MODEL_PATH,
    trust_remote_code=True,
    max_model_len=8192,
    limit_mm_per_prompt={"image": 4},
    dtype="bfloat16",
)

# These ids are </s> and <|im_end|> of InternLM2, as in InternVL2-8B. InternVL3-8B has a vocabulary in which 2 is "#",
# at which an answer would end as well, and needs neither: its own <|im_end|> ends an answer anyway.
sampling_params = SamplingParams(
    temperature=0.7,
    top_p=0.9,
    max_tokens=512,
    stop_token_ids=[2, 92542],
)

image = ImageAsset("cherry_blossom").pil_image
prompt = "<|im_start|>user\n<image>\nDescribe this image in detail.<|im_end|>\n<|im_start|>assistant\n"
outputs = llm.generate(
    {
        "prompt": prompt,
        "multi_modal_data": {"image": image},
    },
    sampling_params=sampling_params,
)

for output in outputs:
    print(output.outputs[0].text)
