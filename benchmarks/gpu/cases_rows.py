"""Cases of ops that go row by row, of what happens around them, and of drawing tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.gpu.case import Call, Case, Noise, bytes_of
from torch import Tensor

from tilewise.plan.floors import StageWork
from tilewise.platforms.draw import Draw, noise_key
from tilewise.platforms.ops import Ops
from tilewise.twin.specs import TinySpec

EPS = 1e-6


def cases(model: str, spec: TinySpec, tiny: bool) -> Iterator[Case]:
    for rows in (3, 17) if tiny else (64, 4096):
        yield from _decoder(f"{model}, {rows} rows", spec, rows)
    tiles = 2 if tiny else 13
    yield from _tower(f"{model}, {tiles} tiles", spec, tiles)
    for count in (1, 5) if tiny else (1, 64):
        yield _draw(f"{model}, {count} rows", spec.vocab_size, count)


def moved(*names: str, written: int = 1) -> Callable[[SimpleNamespace], StageWork]:
    """The named inputs are read once, and `written` results as large as the first one are written."""

    def work(given: SimpleNamespace) -> StageWork:
        return StageWork(
            bytes_of(*(getattr(given, name) for name in names)) + written * bytes_of(getattr(given, names[0]))
        )

    return work


def _decoder(size: str, spec: TinySpec, rows: int) -> Iterator[Case]:
    width, inner = spec.hidden, spec.intermediate

    def inputs(noise: Noise) -> SimpleNamespace:
        return SimpleNamespace(x=noise(rows, width), y=noise(rows, width), weight=1 + noise(width) / 10)

    yield Case(
        f"rms_norm {size}",
        inputs,
        lambda ops, a: lambda: ops.rms_norm(a.x, a.weight, EPS),
        moved("x", "weight"),
        lambda a: lambda: F.rms_norm(a.x, a.weight.shape, a.weight, EPS),
    )
    yield Case(
        f"add_rms_norm {size}",
        inputs,
        lambda ops, a: lambda: ops.add_rms_norm(a.x, None, a.y, a.weight, EPS),
        moved("x", "y", "weight", written=2),
    )
    yield Case(
        f"silu_mul {size}",
        lambda noise: SimpleNamespace(x=noise(rows, 2 * inner)),
        lambda ops, a: lambda: ops.silu_mul(a.x),
        lambda a: StageWork(1.5 * a.x.nbytes),
    )
    yield Case(
        f"clamped_swiglu {size}",
        lambda noise: SimpleNamespace(x=noise(rows, 2 * inner)),
        lambda ops, a: lambda: ops.clamped_swiglu(a.x),
        lambda a: StageWork(1.5 * a.x.nbytes),
    )
    yield Case(f"scatter_rows {size}", lambda noise: _scattered(noise, rows, width), _scatter, _scattering)


def _scattered(noise: Noise, rows: int, width: int) -> SimpleNamespace:
    order = torch.randperm(2 * rows, generator=noise.generator, device=noise.device)
    pages = torch.randint(0, 4 * rows, (rows,), generator=noise.generator, device=noise.device)
    return SimpleNamespace(
        target=noise(2 * rows, width), rows=order[:rows].contiguous(), source=noise(4 * rows, width), pages=pages
    )


def _scatter(ops: Ops, a: SimpleNamespace) -> Call:
    target = a.target.clone()

    def call() -> tuple[Tensor]:
        ops.scatter_rows(target, a.rows, a.source, a.pages)
        return (target,)

    return call


def _scattering(a: SimpleNamespace) -> StageWork:
    return StageWork(2 * len(a.rows) * a.target.shape[1] * a.target.itemsize)


def _tower(size: str, spec: TinySpec, tiles: int) -> Iterator[Case]:
    width, side = spec.vision_hidden, spec.tile_size
    tokens = (side // spec.patch) ** 2 + 1

    def inputs(noise: Noise) -> SimpleNamespace:
        x, y = noise(tiles, tokens, width), noise(tiles, tokens, width)
        return SimpleNamespace(x=x, y=y, weight=1 + noise(width) / 10, bias=noise(width), scale=noise(width) / 10)

    yield Case(
        f"layer_norm {size}",
        inputs,
        lambda ops, a: lambda: ops.layer_norm(a.x, a.weight, a.bias, EPS),
        moved("x", "weight", "bias"),
    )
    yield Case(
        f"add_layer_norm {size}",
        inputs,
        lambda ops, a: lambda: ops.add_layer_norm(a.x, a.scale, a.y, a.weight, a.bias, EPS),
        moved("x", "y", "weight", "bias", "scale", written=2),
    )
    yield Case(
        f"add_scaled {size}",
        inputs,
        lambda ops, a: lambda: ops.add_scaled(a.x, a.scale, a.y),
        moved("x", "y", "scale"),
    )
    yield Case(
        f"gelu {size}",
        lambda noise: SimpleNamespace(x=noise(tiles, tokens, spec.vision_intermediate)),
        lambda ops, a: lambda: ops.gelu(a.x),
        moved("x"),
    )
    yield Case(f"patchify {size}", lambda noise: _pixels(noise, tiles, side), _patchify(spec.patch), _patching)


def _pixels(noise: Noise, tiles: int, side: int) -> SimpleNamespace:
    pixels = torch.randint(
        0, 256, (tiles, side, side, 3), generator=noise.generator, device=noise.device, dtype=torch.uint8
    )
    mean, std = (
        torch.tensor(numbers, device=noise.device) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return SimpleNamespace(pixels=pixels, mean=mean, std=std)


def _patchify(patch: int) -> Callable[[Ops, SimpleNamespace], Call]:
    return lambda ops, a: lambda: ops.patchify(a.pixels, patch, a.mean, a.std)


def _patching(a: SimpleNamespace) -> StageWork:
    return StageWork(a.pixels.nbytes * (1 + torch.float32.itemsize))


def _draw(size: str, vocabulary: int, count: int) -> Case:
    """Requests want different things, as those of a server do."""
    wants: tuple[dict[str, Any], ...] = ({}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 20, "top_p": 0.8, "min_p": 0.05})
    usual: dict[str, Any] = {"temperature": 0.8, "top_k": -1, "top_p": 1.0, "min_p": 0.0}
    draws = [Draw(row=row, key=noise_key(row, 7), **usual | wants[row % len(wants)]) for row in range(count)]
    return Case(
        f"draw {size}",
        lambda noise: SimpleNamespace(logits=4 * noise(count, vocabulary, dtype=torch.float32)),
        lambda ops, a: lambda: ops.draw(a.logits, draws),
        lambda a: StageWork(a.logits.nbytes),
    )
