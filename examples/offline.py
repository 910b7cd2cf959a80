"""Offline inference: one picture, a batch, several pictures, a raw prompt. Runs as it is, with the demo model.

python examples/offline.py [MODEL]
"""

import sys

from tilewise import LLM, ImageAsset, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "demo", limit_mm_per_prompt={"image": 4})
greedy = SamplingParams(temperature=0, max_tokens=32)


def user(question: str, *names: str) -> dict:
    """A message about sample pictures; from a server's client it would hold image_url parts."""
    pictures = [{"type": "image_pil", "image_pil": ImageAsset(name).pil_image} for name in names]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}


print("one picture:")
print(" ", llm.chat([user("What is the word?", "reading_text")], greedy)[0].outputs[0].text)

print("a batch, in which the picture is encoded once:")
questions = ["How many diamonds are in the picture?", "Which color do the shapes have?"]
for question, output in zip(questions, llm.chat([[user(q, "counting")] for q in questions], greedy), strict=True):
    print(f"  {question} {output.outputs[0].text}")

print("two pictures, placed by their markers:")
question = "Image-1: <image>\nImage-2: <image>\nIn which picture are there more hearts?"
answer = llm.chat([user(question, "comparing_1", "comparing_2")], greedy)[0]
print(f"  {answer.outputs[0].text} ({answer.usage.tiles} tiles, {answer.usage.prompt_tokens} prompt tokens)")

print("a raw prompt, special tokens and all:")
prompt = answer.prompt.replace("In which picture are there more hearts?", "How many hearts are in Image-1?")
pictures = [ImageAsset(name).pil_image for name in ("comparing_1", "comparing_2")]
raw = llm.generate({"prompt": prompt, "multi_modal_data": {"image": pictures}}, greedy)[0]
print(" ", raw.outputs[0].text)
