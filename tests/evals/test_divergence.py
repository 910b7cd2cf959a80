"""How far two engines' next-token distributions lie apart."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tilewise.cli import main
from tilewise.errors import InvalidCheckpoint, InvalidConfig, InvalidMedia
from tilewise.evals.divergence import ComparedPrompt, divergence, kl, read_prompts

DEMO = Path(__file__).parents[2] / "src" / "tilewise" / "demo" / "checkpoint"
PICTURES = DEMO.parent / "pictures"
PROMPTS = [ComparedPrompt("What is the word?", (PICTURES / "reading_text.png",)), ComparedPrompt("Hello!")]


def logs(values: dict[int, float]) -> dict[int, float]:
    return {token: math.log(value) for token, value in values.items()}


def test_kl_over_all_tokens_is_the_sum_of_its_definition():
    generator = np.random.default_rng(5)
    p, q = generator.dirichlet(np.ones(50)), generator.dirichlet(np.ones(50))
    expected = float((p * np.log(p / q)).sum())
    assert kl(logs(dict(enumerate(p))), logs(dict(enumerate(q)))) == pytest.approx(expected, rel=1e-9)


def test_tokens_that_one_side_alone_names_count_as_one():
    """p = (0.6, 0.3, 0.1), q = (0.5, 0.2, 0.3), of which the second names tokens 0 and 2 alone."""
    found = kl(logs({0: 0.6, 1: 0.3}), logs({0: 0.5, 2: 0.3}))
    assert found == pytest.approx(0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5))
    assert found < 0.6 * math.log(0.6 / 0.5) + 0.3 * math.log(0.3 / 0.2) + 0.1 * math.log(0.1 / 0.3)


def test_an_engine_is_no_way_from_itself_and_some_from_its_rounded_one():
    same = divergence("demo", "demo", PROMPTS, 4, 20)
    assert same.same_top == 1
    assert same.kl < 1e-4
    rounded = divergence("demo", "demo,quantization=int8", PROMPTS, 4, 20)
    assert same.kl < rounded.kl < 1
    assert [one.kl for one in rounded.prompts] == sorted((one.kl for one in rounded.prompts), reverse=True)
    assert rounded.tokens == sum(one.tokens for one in rounded.prompts) > 2


def test_the_command_writes_figures_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Hi"}) + "\n")
    files = ("--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    asked = ("--prompts", str(tmp_path / "prompts.jsonl"), "--max-tokens", "3", "--top", "5")
    assert main(["eval", "divergence", "demo", "demo", *asked, *files]) == 0
    assert "the same likeliest token at 100.0 %" in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["same_top"], written["prompts"][0]["prompt"], written["top"]) == (1.0, "Hi", 5)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def broken_demo(folder: Path) -> Path:
    """The demo with a norm that is no number."""
    shutil.copytree(DEMO, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.layers.0.input_layernorm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("order", [0, 1])
def test_a_model_without_probabilities_is_named(tmp_path: Path, order: int) -> None:
    engines = ["demo", str(broken_demo(tmp_path / "broken"))]
    if order:
        engines.reverse()
    with pytest.raises(InvalidCheckpoint, match=r"broken has no probabilities at token 1 of the answer to"):
        divergence(engines[0], engines[1], PROMPTS, 4, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompt"),
        ("{", "line 1: expected"),
        ('{"prompt": "a"}\n[]', "line 2: expected"),
        ('{"prompt": 5}', "prompt must be a text"),
        ('{"prompt": "a", "images": "b.png"}', "images a list of files"),
    ],
)
def test_prompts_that_are_none(tmp_path, text: str, message: str):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        read_prompts(file)


def test_prompts_name_pictures_from_their_folder(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "images": ["b.png"]}\n')
    assert read_prompts(file) == [ComparedPrompt("a", (tmp_path / "b.png",))]
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(InvalidMedia, match=r"b\.png a' cannot be read"):
        divergence("demo", "demo", read_prompts(file), 1, 1)
    assert len(read_prompts(None)) > 10
