"""GPT-OSS against transformers: sinks, windows, YaRN, and experts in both stored forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import TinySpec, original_config, original_tensors, write_original
from tilewise import LLM, SamplingParams
from tilewise.errors import InvalidCheckpoint
from tilewise.models.backbones.gpt_oss import dequantise_mxfp4
from tilewise.models.load import Architecture
from tilewise.weights.folder import CheckpointFolder

SPEC = TinySpec(hidden=64, vocab=291)
PROMPT = torch.randint(0, 250, (1, 40), generator=torch.Generator().manual_seed(1))
EXPERTS = "language_model.model.layers.{}.mlp.experts"


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    yarn = {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 128,
    }
    config = GptOssConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=291,
        sliding_window=8,
        max_position_embeddings=4096,
        rope_parameters=yarn,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = GptOssForCausalLM(config).eval().float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Products of about one, so that the difference between two orders of summation stays far below 1e-4.
            width = parameter.shape[-2 if ".experts." in name else -1] if parameter.ndim > 1 else 4
            parameter.copy_(noise * width**-0.5 + ("norm" in name))
    return model


def write(folder: Path, theirs: Any, decoder: dict[str, Tensor]) -> Path:
    """An original checkpoint with this decoder behind the usual tower."""
    write_original(folder, SPEC)
    tower = {name: tensor for name, tensor in original_tensors(SPEC).items() if not name.startswith("language_model.")}
    save_file({**tower, **decoder}, folder / "model.safetensors")
    text = {**theirs.config.to_dict(), "architectures": ["GptOssForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({**original_config(SPEC), "llm_config": text}, default=str))
    return folder


def floats(theirs: Any) -> dict[str, Tensor]:
    return {f"language_model.{name}": tensor.contiguous() for name, tensor in theirs.state_dict().items()}


def answer(folder: Path, tokens: int = 1) -> Any:
    llm = LLM(str(folder), dtype="float32", max_model_len=256)
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=20)
    return llm.generate(PROMPT[0].tolist(), greedy)[0].outputs[0]


def test_greedy_tokens_and_scores_equal_transformers(theirs, tmp_path):
    found = answer(write(tmp_path, theirs, floats(theirs)), tokens=16)
    with torch.no_grad():
        everything = torch.ones_like(PROMPT)
        expected = theirs.generate(
            PROMPT, attention_mask=everything, max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        scores = theirs(expected).logits[0].log_softmax(-1)
    assert found.token_ids == expected[0, 40:].tolist()
    for position, row in enumerate(found.logprobs):
        for token, score in row.items():
            assert score.logprob == pytest.approx(scores[39 + position, token].item(), abs=1e-4)


def quantise(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(blocks, scales, the values they stand for) of weights [..., n * 32]; the nearest code is searched."""
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    grouped = weights.unflatten(-1, (-1, 32))
    exponents = (grouped.abs().amax(-1) / 6).log2().ceil()
    scaled = grouped / 2 ** exponents[..., None]
    codes = (scaled.abs()[..., None] - magnitudes).abs().argmin(-1)
    values = magnitudes[codes] * scaled.sign() * 2 ** exponents[..., None]
    codes = codes + 8 * (scaled < 0)
    blocks = codes[..., ::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (exponents + 127).to(torch.uint8), values.flatten(-2)


class Whole:
    """A stored tensor that is all in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, index: slice) -> Tensor:
        return self.tensor[index]


def test_mxfp4_blocks_stand_for_their_values():
    weights = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2)) * 10
    blocks, scales, values = quantise(weights)
    torch.testing.assert_close(dequantise_mxfp4(Whole(blocks), Whole(scales)).float(), values, atol=0, rtol=0)


def test_mxfp4_experts_equal_the_same_values_in_floats(theirs, tmp_path):
    apart, packed = floats(theirs), floats(theirs)
    for layer in range(4):
        for name in ("gate_up_proj", "down_proj"):
            key = f"{EXPERTS.format(layer)}.{name}"
            blocks, scales, values = quantise(apart[key].transpose(1, 2))
            apart[key] = values.transpose(1, 2).contiguous()
            del packed[key]
            packed |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
    one, other = (answer(write(tmp_path / name, theirs, made)) for name, made in (("a", apart), ("p", packed)))
    assert {token: score.logprob for token, score in one.logprobs[0].items()} == {
        token: score.logprob for token, score in other.logprobs[0].items()
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer_types", ["full_attention"] * 4, "layer_types must alternate, a sliding layer first"),
        ("swiglu_limit", 5.0, "swiglu_limit is 5.0, expected 7.0"),
        ("num_local_experts", 0, "num_local_experts must be a whole number above 0, found 0"),
    ],
)
def test_what_the_code_does_not_compute_is_refused(theirs, tmp_path, key, value, message):
    folder = write(tmp_path, theirs, floats(theirs))
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidCheckpoint, match=message):
        Architecture.of(CheckpointFolder.open(folder))
