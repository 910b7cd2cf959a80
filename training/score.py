"""Accuracy of the demo checkpoint as Tilewise runs it: held-out pictures, free greedy answers, exact match.

Unlike evaluate.py, which scores the training model, this goes the way a user's question goes: template, tokenizer,
tiling, scheduler, cache, sampler, text.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.progress import track

from evaluate import FOLLOW_UP, HELD_OUT_SEED, table
from sample import Level, Sample
from tasks import MEASURED_TASKS, make_sample
from tilewise import LLM, SamplingParams

BATCH = 64
GREEDY = SamplingParams(temperature=0, max_tokens=64, skip_special_tokens=False)

Conversation = list[dict[str, Any]]


def conversations(sample: Sample) -> Iterator[tuple[Conversation, str]]:
    """Each turn of a sample as a conversation that ends with its question, and the right answer."""
    messages: Conversation = []
    for number, turn in enumerate(sample.turns):
        messages = [*messages, first_message(sample) if number == 0 else {"role": "user", "content": turn.question}]
        yield messages, turn.answer
        messages = [*messages, {"role": "assistant", "content": turn.answer}]


def first_message(sample: Sample) -> dict[str, Any]:
    """The first question with the pictures in front; several pictures are numbered."""
    pictures = [{"type": "image_pil", "image_pil": picture} for picture in sample.pictures]
    question = sample.turns[0].question
    if len(pictures) > 1:
        question = "".join(f"Image-{number}: <image>\n" for number in range(1, len(pictures) + 1)) + question
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}


def score(llm: LLM, per_task: int) -> dict[str, tuple[int, int]]:
    """Right answers and answers by task; first turns count for their task, later ones as follow-up."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    items = [
        (turn.task if number == 0 else FOLLOW_UP, conversation, answer)
        for task in MEASURED_TASKS
        for index in range(per_task)
        for sample in [make_sample(HELD_OUT_SEED, index, task, Level())]
        for number, (turn, (conversation, answer)) in enumerate(zip(sample.turns, conversations(sample), strict=True))
    ]
    for first in track(range(0, len(items), BATCH), description="Asking", transient=True):
        batch = items[first : first + BATCH]
        outputs = llm.chat([conversation for _, conversation, _ in batch], GREEDY, use_tqdm=False)
        for (task, _, answer), output in zip(batch, outputs, strict=True):
            right[task] += output.outputs[0].text == answer
            total[task] += 1
    return {task: (right[task], total[task]) for task in (*MEASURED_TASKS, FOLLOW_UP)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--max-tiles", type=int, help="tiles a picture; 1 shows what tiling is for")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", help="int8 shows what it costs")
    arguments = parser.parse_args()
    tiles = {"max_dynamic_patch": arguments.max_tiles} if arguments.max_tiles else None
    rounding = {"dtype": arguments.dtype, "quantization": arguments.quantization}
    print(table(score(LLM(arguments.model, mm_processor_kwargs=tiles, **rounding), arguments.per_task)))


if __name__ == "__main__":
    main()
