"""Three questions about a picture at once, for InternVL3-8B: a script for vLLM-Ascend, of which only the imports were
changed. The picture is encoded once.

VLLM_USE_MODELSCOPE=True PYTORCH_NPU_ALLOC_CONF=max_split_size_mb:256 python examples/ascend/batch_inference.py

On a machine without an NPU it runs too, on what is there. The sample picture ships with the package.
"""

from tilewise import LLM, SamplingParams
from tilewise.assets.image import ImageAsset

MODEL_PATH = "OpenGVLab/InternVL3-8B"

llm = LLM(
    model=MODEL_PATH,
    max_model_len=8192,
    trust_remote_code=True,
    limit_mm_per_prompt={"image": 4},
    dtype="bfloat16",
)

sampling_params = SamplingParams(max_tokens=128)

image = ImageAsset("cherry_blossom").pil_image.convert("RGB")
questions = [
    "What is the content of this image?",
    "Describe this image in detail.",
    "What colors are prominent in this image?",
]

prompts = [f"<|im_start|>user\n<image>\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in questions]

# One picture for a list of prompts: each of them is about it.
outputs = llm.generate(
    {
        "prompt": prompts,
        "multi_modal_data": {"image": image},
    },
    sampling_params=sampling_params,
)

for i, output in enumerate(outputs):
    print(f"\nQuestion {i + 1}: {questions[i]}")
    print(f"Answer: {output.outputs[0].text}")
