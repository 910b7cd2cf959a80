"""Accuracy on held-out samples, task by task.

An answer counts when every token of it, the end of the turn included, is the model's first choice given
the right earlier answers; that is the same as a greedy answer being exactly right. The first turn of a
sample counts for its task, later turns count as follow-up.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from batches import TILE_GROUPS, Batch, collate
from model import DemoModel
from sample import Level, Sample
from tasks import MEASURED_TASKS, make_sample

HELD_OUT_SEED = 1_000_003
FOLLOW_UP = "follow_up"


def right_turns(model: DemoModel, batch: Batch, device: torch.device) -> list[list[bool]]:
    """For each sample, whether each of its turns was answered exactly."""
    targets = batch.targets()
    wanted = targets >= 0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        logits = model(batch.pixels(device), batch.tokens.to(device), wanted.to(device))
    hits = torch.zeros_like(targets, dtype=torch.bool)
    hits[wanted] = logits.argmax(dim=-1).cpu() == targets[wanted]
    owners = torch.cat([batch.owners[:, 1:], torch.zeros_like(batch.owners[:, :1])], dim=1)
    return [
        [bool(row_hits[row_owners == turn].all()) for turn in range(1, int(row_owners.max()) + 1)]
        for row_hits, row_owners in zip(hits, owners, strict=True)
    ]


def measure(
    model: DemoModel, tokenizer: Tokenizer, per_task: int, level: Level, most_tiles: int, device: torch.device
) -> dict[str, tuple[int, int]]:
    """Right answers and answers by task, on samples no training seed produces."""
    right, total = Counter(), Counter()
    for task in MEASURED_TASKS:
        size = 10 if task in TILE_GROUPS else 50
        for first in range(0, per_task, size):
            indices = range(first, min(first + size, per_task))
            samples = [make_sample(HELD_OUT_SEED, index, task, level) for index in indices]
            add_results(right, total, samples, right_turns(model, collate(tokenizer, samples, most_tiles), device))
    return {task: (right[task], total[task]) for task in (*MEASURED_TASKS, FOLLOW_UP)}


def add_results(right: Counter, total: Counter, samples: list[Sample], results: list[list[bool]]) -> None:
    """Count each turn for its task or, from the second turn on, as follow-up."""
    for sample, row in zip(samples, results, strict=True):
        for position, (turn, is_right) in enumerate(zip(sample.turns, row, strict=True)):
            task = turn.task if position == 0 else FOLLOW_UP
            right[task] += is_right
            total[task] += 1


def summary(results: dict[str, tuple[int, int]]) -> str:
    """One line with a percentage for each task and for all turns together."""
    parts = [f"{task} {100 * right / max(1, total):.0f}" for task, (right, total) in results.items()]
    all_right, all_total = (sum(column) for column in zip(*results.values(), strict=True))
    return f"all {100 * all_right / all_total:.1f}: " + ", ".join(parts)


def table(results: dict[str, tuple[int, int]]) -> str:
    """A Markdown table of the accuracy by task."""
    rows = [f"| {task} | {total} | {100 * right / total:.1f} % |" for task, (right, total) in results.items()]
    all_right, all_total = (sum(column) for column in zip(*results.values(), strict=True))
    rows.append(f"| all | {all_total} | {100 * all_right / all_total:.1f} % |")
    return "\n".join(["| task | answers | exactly right |", "|---|---|---|", *rows])


def load_checkpoint(folder: Path) -> tuple[DemoModel, Tokenizer]:
    """The reference model and tokenizer of a written checkpoint folder, weights in float32."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = DemoModel(config, tokenizer.token_to_id("<IMG_CONTEXT>")).eval()
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    return model, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--per-task", type=int, default=500)
    parser.add_argument("--max-tiles", type=int, default=12)
    arguments = parser.parse_args()
    model, tokenizer = load_checkpoint(arguments.checkpoint)
    print(table(measure(model, tokenizer, arguments.per_task, Level(), arguments.max_tiles, torch.device("cpu"))))


if __name__ == "__main__":
    main()
