"""Two pictures in a raw prompt, for InternVL3-8B: a script for vLLM-Ascend, of which only the imports were changed.

VLLM_USE_MODELSCOPE=True PYTORCH_NPU_ALLOC_CONF=max_split_size_mb:256 python examples/ascend/multiple_images.py

On a machine without an NPU it runs too, on what is there. The sample pictures ship with the package.
"""

from tilewise import LLM, SamplingParams
from tilewise.assets.image import ImageAsset

MODEL_PATH = "OpenGVLab/InternVL3-8B"

llm = LLM(
    model=MODEL_PATH,
    max_model_len=8192,
    trust_remote_code=True,
    limit_mm_per_prompt={"image": 4},  # the most that one prompt may have
    dtype="bfloat16",
)

sampling_params = SamplingParams(max_tokens=256)

image1 = ImageAsset("cherry_blossom").pil_image.convert("RGB")
image2 = ImageAsset("stop_sign").pil_image.convert("RGB")

# The first <image> is where the first picture stands, the second one where the other does.
prompt = (
    "<|im_start|>user\n"
    "<image>\n"
    "Describe the first image.\n"
    "<image>\n"
    "Describe the second image.\n"
    "<|im_end|>\n"
    "<|im_start|>assistant\n"
)
outputs = llm.generate(
    {
        "prompt": prompt,
        "multi_modal_data": {"image": [image1, image2]},
    },
    sampling_params=sampling_params,
)

print(outputs[0].outputs[0].text)
