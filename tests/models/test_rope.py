"""Rope stretched to long contexts: our tables against transformers' frequencies, and whole decoders against theirs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.conftest import ParityTable
from tests.models.driving import TEXT_IDS, load, new_caches, paged
from tests.models.test_parity import their_decoder
from tests.tiny import SPECS, TinySpec, write_hf, write_original
from tilewise.errors import InvalidCheckpoint
from tilewise.layers import RopeConfig, RopeTable
from tilewise.models.config import rope_config
from tilewise.models.load import Architecture
from tilewise.platforms.ops import Ops
from tilewise.weights.family import Rope
from tilewise.weights.folder import CheckpointFolder, Section

CPU = torch.device("cpu")
DYNAMIC = RopeConfig(theta=1e4, trained_length=64, kind="dynamic", factor=2.0)
LONG = RopeConfig(
    theta=1e4,
    trained_length=128,
    kind="longrope",
    original_length=32,
    short_factor=(1.0, 1.1, 1.2, 1.5),
    long_factor=(1.5, 3.0, 9.0, 20.0),
)


def table(config: RopeConfig, width: int, context: int) -> tuple[Tensor, Tensor]:
    return RopeTable(config, width, context, CPU).at(torch.arange(context))


def same(found: tuple[Tensor, Tensor], frequencies: Tensor, scale: float = 1.0) -> None:
    """cos and sin of angles computed in float64 from float64 frequencies."""
    angles = torch.outer(torch.arange(len(found[0]), dtype=torch.float64), frequencies.double())
    for ours, theirs in zip(found, (angles.cos(), angles.sin()), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs * scale, atol=2e-5, rtol=0)


def their_frequencies(kind: str, width: int, trained: int, seq_len: int | None = None, **rope: Any) -> Any:
    """(frequencies, factor on cos and sin) by transformers' own functions."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=2 * width,
        num_attention_heads=2,
        max_position_embeddings=trained,
        rope_parameters={"rope_type": kind, **rope},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, seq_len=seq_len)


@pytest.mark.parametrize("context", [1, 63, 64])
def test_dynamic_does_nothing_up_to_the_trained_length(context: int) -> None:
    plain = table(RopeConfig(theta=1e4, trained_length=64), 8, context)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(table(DYNAMIC, 8, context), plain, strict=True))


@pytest.mark.parametrize("factor", [1.0, 2.0, 6.0])
@pytest.mark.parametrize("context", [65, 100, 256])
def test_dynamic_has_one_larger_base_beyond_it(context: int, factor: float) -> None:
    """base' = base ((factor length / trained) - (factor - 1)) ^ (D / (D - 2)), at positions within it as well."""
    config, width = dataclasses.replace(DYNAMIC, factor=factor), 8
    base = 1e4 * (factor * context / 64 - (factor - 1)) ** (width / (width - 2))
    assert base > 1e4
    found = table(config, width, context)
    same(found, base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width))
    frequencies, scale = their_frequencies("dynamic", width, 64, seq_len=context, rope_theta=1e4, factor=factor)
    same(found, frequencies, scale)


@pytest.mark.parametrize(("context", "factors"), [(31, "short_factor"), (32, "short_factor"), (33, "long_factor")])
def test_longrope_picks_its_factors_by_the_context(context: int, factors: str) -> None:
    frequencies = 1e4 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    divisors = torch.tensor(getattr(LONG, factors), dtype=torch.float64)
    scale = (1 + torch.tensor(4.0).log() / torch.tensor(32.0).log()).sqrt().item()
    same(table(LONG, 8, context), frequencies / divisors, scale)


def test_longrope_of_phi_3_mini_128k_scales_by_1_1902() -> None:
    config = dataclasses.replace(LONG, trained_length=131072, original_length=4096)
    cos, _ = table(config, 8, 1)
    assert cos.flatten().tolist() == pytest.approx([1.1902] * 4, abs=5e-5)


@pytest.mark.parametrize("context", [20, 32, 33, 90])
def test_longrope_is_that_of_transformers(context: int) -> None:
    frequencies, scale = their_frequencies(
        *("longrope", 8, 128, context),
        rope_theta=1e4,
        short_factor=list(LONG.short_factor),
        long_factor=list(LONG.long_factor),
        original_max_position_embeddings=32,
    )
    same(table(LONG, 8, context), frequencies, scale)


def test_longrope_without_stretching_has_no_scale() -> None:
    cos, _ = table(dataclasses.replace(LONG, trained_length=32), 8, 1)
    assert torch.equal(cos, torch.ones(1, 4))


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("width", "theta", "factor", "original", "fast", "slow"),
    [
        (64, 150000.0, 32.0, 4096, 32.0, 1.0),  # gpt-oss-20b
        (128, 1e6, 4.0, 32768, 32.0, 1.0),
        (16, 1e4, 8.0, 64, 4.0, 0.5),
        (32, 1e4, 1.0, 256, 32.0, 1.0),
    ],
)
def test_yarn_is_that_of_transformers(
    width: int, theta: float, factor: float, original: int, fast: float, slow: float, truncate: bool
) -> None:
    frequencies, scale = their_frequencies(
        *("yarn", width, int(original * factor)),
        rope_theta=theta,
        factor=factor,
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
        original_max_position_embeddings=original,
    )
    config = RopeConfig(
        theta=theta,
        trained_length=int(original * factor),
        kind="yarn",
        factor=factor,
        original_length=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
    )
    same(table(config, width, 70), frequencies, scale)


@pytest.mark.parametrize("kind", ["longrope", "yarn"])
def test_a_factor_that_the_config_gives_replaces_the_formula(kind: str) -> None:
    own = {"longrope": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, "yarn": {"factor": 4.0}}[kind]
    frequencies, scale = their_frequencies(
        *(kind, 8, 128, 100), rope_theta=1e4, original_max_position_embeddings=32, attention_factor=1.7, **own
    )
    factors = {"short_factor": (1.0,) * 4, "long_factor": (2.0,) * 4, "factor": 4.0, "attention_factor": 1.7}
    same(table(dataclasses.replace(LONG, kind=kind, **factors), 8, 100), frequencies, scale)


@pytest.mark.parametrize("key", ["partial_rotary_factor", "mscale", "mscale_all_dim"])
def test_keys_of_rope_that_no_published_model_has_are_refused(key: str) -> None:
    text = {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "default", key: 0.5}}
    with pytest.raises(InvalidCheckpoint, match=f"rope_parameters: {key} is 0.5"):
        rope_config(Section(text, "config.json"), 8)


@pytest.mark.parametrize("given", [None, 1.25])
def test_an_attention_factor_is_read(given: float | None) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "attention_factor": given}
    config = rope_config(Section({"max_position_embeddings": 64, "rope_scaling": scaling}, "config.json"), 8)
    assert config.attention_factor == given


def test_truncation_of_yarn_changes_frequencies() -> None:
    """Else the test above could not tell one from the other."""
    config = RopeConfig(
        theta=150000.0, trained_length=131072, kind="yarn", factor=32.0, original_length=4096, truncate=True
    )
    whole, exact = (table(dataclasses.replace(config, truncate=truncate), 64, 50)[0] for truncate in (True, False))
    assert (whole - exact).abs().max() > 1e-3


@torch.inference_mode()
def decoder_logits(folder: Path, ids: Tensor, context: int) -> Tensor:
    ops = Ops()
    model = load(folder, ops, context)
    layout, blocks = paged(len(ids))
    x = model.decoder.embed(ids)
    x = model.decoder(x, torch.arange(len(ids)), new_caches(model, blocks), layout, ops)
    return model.decoder.logits(x, ops)


@torch.inference_mode()
def their_logits(folder: Path, spec: TinySpec, ids: Tensor) -> Tensor:
    logits: Tensor = their_decoder(folder, spec)(ids[None]).logits[0]
    return logits


def long_from_16(spec: TinySpec) -> TinySpec:
    return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, original_length=16))


def in_both_formats(folder: Path, spec: TinySpec) -> tuple[Path, Path]:
    return write_hf(folder / "hf", spec), write_original(folder / "original", spec)


@pytest.mark.parametrize(
    ("name", "length", "context"),
    [("phi3-300m", 12, 16), ("phi3-300m", 16, 16), ("phi3-300m", 17, 17), ("phi3-300m", 33, 128)],
)
def test_decoder_with_short_and_long_factors(
    name: str, length: int, context: int, tmp_path: Path, parity: ParityTable
) -> None:
    """Up to 16 tokens the short factors hold; theirs go by the sequence, ours by the context."""
    spec, ids = long_from_16(SPECS[name]), torch.tensor(TEXT_IDS[:length])
    native, original = in_both_formats(tmp_path, spec)
    part = "decoder, short factors" if length <= 16 else "decoder, long factors"
    theirs = their_logits(native, spec, ids)
    for folder in (native, original):
        parity.check(name, "Ops", part, decoder_logits(folder, ids, context), theirs)


def test_a_long_context_has_long_factors_for_short_sequences_too(tmp_path: Path) -> None:
    """Keys in the cache would contradict later ones if the factors changed while a sequence grows."""
    spec, ids = long_from_16(SPECS["phi3-300m"]), torch.tensor(TEXT_IDS)
    folder = write_original(tmp_path, spec)
    whole, start = decoder_logits(folder, ids, 64), decoder_logits(folder, ids[:12], 64)
    torch.testing.assert_close(start, whole[:12], atol=1e-5, rtol=1e-5)
    assert (decoder_logits(folder, ids[:12], 16) - start).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["internlm2-300m", "internlm3-300m-head"])
@pytest.mark.parametrize(("length", "context"), [(20, 24), (24, 24), (33, 33)])
def test_decoder_within_and_beyond_the_trained_length(
    name: str, length: int, context: int, tmp_path: Path, parity: ParityTable
) -> None:
    """Trained on 24 tokens. Theirs stretches to the sequence, ours to the context, which is the same here."""
    spec, ids = dataclasses.replace(SPECS[name], max_position=24), torch.tensor(TEXT_IDS[:length])
    native, original = in_both_formats(tmp_path, spec)
    part = "decoder, trained length" if length <= 24 else "decoder, beyond it"
    theirs = their_logits(native, spec, ids)
    for folder in (native, original):
        parity.check(name, "Ops", part, decoder_logits(folder, ids, context), theirs)


def test_stretching_matters_beyond_the_trained_length(tmp_path: Path) -> None:
    spec, ids = dataclasses.replace(SPECS["internlm2-300m"], max_position=24), torch.tensor(TEXT_IDS)
    stretched = write_original(tmp_path / "dynamic", spec)
    plain = write_original(tmp_path / "plain", dataclasses.replace(spec, rope=Rope(spec.rope.theta)))
    assert torch.equal(decoder_logits(stretched, ids[:20], 24), decoder_logits(plain, ids[:20], 24))
    assert (decoder_logits(stretched, ids, 33) - decoder_logits(plain, ids, 33)).abs().max() > 1e-3


@pytest.mark.parametrize("spelling", ["new", "old"])
def test_longrope_is_read_from_every_spelling(spelling: Any, tmp_path: Path) -> None:
    spec = SPECS["phi3-300m"]
    native = write_hf(tmp_path / "hf", spec, spelling=spelling)
    original = write_original(tmp_path / "original", spec)
    ropes = [Architecture.of(CheckpointFolder.open(folder)).config.decoder.rope for folder in (native, original)]
    assert ropes[0] == ropes[1]
    assert (ropes[0].kind, ropes[0].original_length, ropes[0].trained_length) == ("longrope", 256, 2048)
    assert (ropes[0].short_factor, ropes[0].long_factor) == ((1.0, 1.125, 1.25), (1.25, 2.75, 4.25))
