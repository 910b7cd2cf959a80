"""Train the demo model: seeded, resumable, on the GPU if there is one and otherwise on the CPU.

On the CPU several processes with one thread each are faster than one process with several threads: each takes
its share of every batch, and the gradients are averaged.

The learning rate warms up, stays constant and falls linearly over the last part of the steps, so that a
run can be lengthened or shortened by resuming it with another number of steps. With --start a run goes on from
the weights of a written checkpoint, at the step of the plan that --first-step names.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer
from torch import distributed, multiprocessing

from batches import NO_TARGET, Batch, stage_at, training_batch
from evaluate import load_checkpoint, measure, summary
from model import DemoModel
from sample import level_of
from settings import model_config
from tokenizer import train_tokenizer

WARM_UP_STEPS = 150
# The matrices take a larger rate than the vectors and tables.
MUON_SCALE = 2.5


def make_optimizers(model: DemoModel, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for tables, vectors and the output matrix."""
    tables = ("embed", "lm_head")
    inner = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not any(word in name for word in tables)
    }
    outer = [parameter for name, parameter in model.named_parameters() if name not in inner]
    muon = torch.optim.Muon(inner.values(), lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    return [muon, adam]


def rate_factor(step: int, steps: range, fall: float) -> float:
    """The part of the full learning rate used at a step of a run's steps."""
    warm_up = min(1.0, (step - steps.start + 1) / WARM_UP_STEPS)
    left = (steps.stop - step) / max(1.0, fall * len(steps))
    return warm_up * min(1.0, max(left, 0.01))


def average_gradients(model: DemoModel) -> None:
    """Replace each process's gradients by the mean over all processes."""
    gradients = [parameter.grad for parameter in model.parameters()]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(joined)
    joined /= distributed.get_world_size()
    parts = joined.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train_step(
    model: DemoModel, optimizers: list[torch.optim.Optimizer], batch: Batch, rate: float, device: torch.device
) -> float:
    """One step on one batch; returns the loss per answer token."""
    targets = batch.targets().to(device)
    wanted = targets != NO_TARGET
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(batch.pixels(device), batch.tokens.to(device), wanted)
    loss = functional.cross_entropy(logits.float(), targets[wanted])
    loss.backward()
    if distributed.is_initialized():
        average_gradients(model)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        scale = MUON_SCALE if isinstance(optimizer, torch.optim.Muon) else 1.0
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save_state(path: Path, model: DemoModel, optimizers: list, progress: dict[str, Any]) -> None:
    """Write everything needed to go on, replacing the old state only when the new one is complete."""
    states = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    torch.save({**states, **progress}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load_state(path: Path, model: DemoModel, optimizers: list, device: torch.device) -> dict[str, Any] | None:
    """Load the saved state, if there is one, and return how far it had come."""
    if not path.exists():
        return None
    state = torch.load(path, map_location=device)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return {name: state[name] for name in ("step", "samples", "seconds")}


def report(model: DemoModel, tokenizer: Tokenizer, stage: dict, device: torch.device) -> None:
    """Print held-out accuracy at the present difficulty."""
    model.eval()
    print("    " + summary(measure(model, tokenizer, 20, level_of(stage), 12, device)), flush=True)
    model.train()


def run(rank: int, arguments: argparse.Namespace) -> None:
    """Train from the start or from the saved state to the last step, as one of the processes."""
    if arguments.processes > 1:
        torch.set_num_threads(1)
        meeting = f"file://{arguments.work.resolve()}/meeting"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=arguments.processes)
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = train_tokenizer()
    model = DemoModel(model_config(tokenizer), tokenizer.token_to_id("<IMG_CONTEXT>")).to(device)
    optimizers = make_optimizers(model, arguments.rate)
    state_file = arguments.work / "state.pt"
    progress, losses = load_state(state_file, model, optimizers, device), []
    if progress is None:
        progress = {"step": arguments.first_step, "samples": 0, "seconds": 0.0}
        if arguments.start is not None:
            model.load_state_dict(load_checkpoint(arguments.start)[0].state_dict())
    steps = range(arguments.first_step, arguments.steps)
    started = time.monotonic() - progress["seconds"]
    for step in range(progress["step"], arguments.steps):
        stage = stage_at(json.loads(arguments.plan.read_text()), step)
        batch = training_batch(tokenizer, arguments.seed, step, stage, (rank, arguments.processes))
        rate = arguments.rate * rate_factor(step, steps, arguments.fall)
        losses.append(train_step(model, optimizers, batch, rate, device))
        samples = progress["samples"] + arguments.processes * len(batch.tokens)
        progress = {"step": step + 1, "samples": samples, "seconds": time.monotonic() - started}
        if rank == 0 and progress["step"] % 50 == 0:
            print(*(f"{name} {value:.0f}" for name, value in progress.items()), end=" ")
            print(f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}", flush=True)
        if rank == 0 and (progress["step"] % arguments.save_every == 0 or progress["step"] == arguments.steps):
            save_state(state_file, model, optimizers, progress)
            report(model, tokenizer, stage, device)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the running state")
    parser.add_argument("--plan", type=Path, default=here / "plan.json")
    parser.add_argument("--start", type=Path, help="checkpoint folder whose weights a new run begins with")
    parser.add_argument("--first-step", type=int, default=0, help="step of the plan at which a new run begins")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--fall", type=float, default=0.3, help="part of the steps over which the rate falls")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    (arguments.work / "meeting").unlink(missing_ok=True)
    train_tokenizer().save(str(arguments.work / "tokenizer.json"))
    if arguments.processes == 1:
        run(0, arguments)
    else:
        multiprocessing.spawn(run, (arguments,), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
