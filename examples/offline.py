"""Offline inference: one picture, several pictures, a batch, a conversation. Runs as it is, with the demo model.

python examples/offline.py [MODEL]
"""

import sys

from tilewise import LLM, ImageAsset, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "demo", limit_mm_per_prompt={"image": 4})
greedy = SamplingParams(temperature=0, max_tokens=64)
sign = ImageAsset("stop_sign").pil_image
blossom = ImageAsset("cherry_blossom").pil_image


def user(question: str) -> str:
    """A raw prompt in InternVL's format; `llm.chat` writes this for you, system text included."""
    return f"<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"


print("one picture:")
for output in llm.generate({"prompt": user("What color is the sign?"), "multi_modal_data": {"image": sign}}, greedy):
    print(" ", output.outputs[0].text)

print("a batch, in which the picture is encoded once:")
questions = ["What shape is this?", "What color is it?", "What word is written in the picture?"]
prompts = [{"prompt": user(question), "multi_modal_data": {"image": sign}} for question in questions]
for question, output in zip(questions, llm.generate(prompts, greedy), strict=True):
    print(f"  {question} {output.outputs[0].text}")

print("several pictures in a conversation:")
content = [
    {"type": "image_pil", "image_pil": sign},
    {"type": "image_pil", "image_pil": blossom},
    {"type": "text", "text": "Image-1: <image>\nImage-2: <image>\nDo both pictures show the same shape?"},
]
answer = llm.chat([{"role": "user", "content": content}], greedy)[0]
print(f"  {answer.outputs[0].text} ({answer.usage.tiles} tiles, {answer.usage.prompt_tokens} prompt tokens)")
