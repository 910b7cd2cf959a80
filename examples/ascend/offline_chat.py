"""A picture at an address, described by InternVL2-2B: a script for vLLM-Ascend, of which only the import was changed.

python examples/ascend/offline_chat.py

On a machine without an NPU it runs too, on what is there. Model and picture are fetched, the model from ModelScope.
"""

import os

os.environ["VLLM_USE_MODELSCOPE"] = "True"
os.environ["PYTORCH_NPU_ALLOC_CONF"] = "max_split_size_mb:256"  # read by torch_npu, so before it is loaded

from tilewise import LLM, SamplingParams

MODEL_PATH = "OpenGVLab/InternVL2-2B"

llm = LLM(
    model=MODEL_PATH,
    max_model_len=4096,
    trust_remote_code=True,
    dtype="bfloat16",
    limit_mm_per_prompt={"image": 10},
)
sampling_params = SamplingParams(max_tokens=512)

image_url = "https://modelscope.oss-cn-beijing.aliyuncs.com/resource/qwen.png"
outputs = llm.chat(
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": image_url}},
                {"type": "text", "text": "Please provide a detailed description of this image"},
            ],
        },
    ],
    sampling_params=sampling_params,
)
print(outputs[0].outputs[0].text)
