"""`encoder_cache_dir` through LLM: what an engine encoded, the next one reads, if it is of the same model."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.models.flash import write_flash
from tests.tiny import SPECS, write_hf, write_original
from tilewise import LLM, SamplingParams
from tilewise.errors import InvalidConfig
from tilewise.models.tile_encoder import TileEncoder

PARAMS = SamplingParams(temperature=0, max_tokens=5, logprobs=3, ignore_eos=True)
SIZES = {"max_model_len": 512, "encoder_cache_gb": 0.001, "kv_cache_memory_bytes": 2**20}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("plain"), SPECS["qwen2-300m"])


@pytest.fixture(scope="module")
def flash(tmp_path_factory):
    return write_flash(tmp_path_factory.mktemp("flash"))


@pytest.fixture
def encoded(monkeypatch):
    """Counts tiles that the model encodes."""
    counted: list[int] = []
    steps = TileEncoder.steps
    monkeypatch.setattr(
        TileEncoder, "steps", lambda self, pixels: (counted.append(len(pixels)), steps(self, pixels))[1]
    )
    return counted


def picture(colour: str = "red") -> Image.Image:
    """Thirteen tiles, no two of them alike."""
    image = Image.effect_noise((400, 300), 90).convert("RGB")
    ImageDraw.Draw(image).ellipse((40, 40, 200, 200), fill=colour)
    return image


PICTURE = picture()


def ask(folder: Path, cache: Path | None, image: Image.Image = PICTURE, **options):
    options = {"dtype": "float32", **SIZES, **options}
    with LLM(str(folder), encoder_cache_dir=None if cache is None else str(cache), **options) as llm:
        prompt = {"prompt": "<image>\nthe hen", "multi_modal_data": {"image": image}}
        return llm.generate(prompt, PARAMS, use_tqdm=False)[0]


def answer(output):
    """Tokens, all their log-probabilities to the last bit, and how many rows the pictures had."""
    scores = [{token: one.logprob for token, one in step.items()} for step in output.outputs[0].logprobs]
    return output.outputs[0].token_ids, scores, output.usage.image_tokens, output.usage.image_tokens_saved


@pytest.mark.parametrize("model", ["plain", "flash"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_after_a_restart_nothing_is_encoded_and_the_answer_is_the_same(
    model, dtype, request, tmp_path, encoded, caplog
):
    folder = request.getfixturevalue(model)
    without = ask(folder, None, dtype=dtype)
    first = ask(folder, tmp_path / "tiles", dtype=dtype)
    assert sum(encoded) == 2 * 13
    with caplog.at_level(logging.INFO, "tilewise"):
        again = ask(folder, tmp_path / "tiles", dtype=dtype)
    assert sum(encoded) == 2 * 13
    assert answer(again) == answer(first) == answer(without)
    assert "13 hits, 0 misses" in caplog.text


def test_only_tiles_that_are_new_are_encoded(plain, tmp_path, encoded):
    ask(plain, tmp_path)
    encoded.clear()
    blue = PICTURE.copy()
    ImageDraw.Draw(blue).rectangle((0, 0, 20, 20), fill="blue")  # the first tile, and the thumbnail
    output = ask(plain, tmp_path, blue)
    assert sum(encoded) == 2
    assert answer(output)[2:] == answer(ask(plain, None, blue))[2:]


def test_the_weights_make_the_model_not_its_folder_or_format(plain, tmp_path, encoded):
    ask(plain, tmp_path / "tiles")
    encoded.clear()
    renamed = shutil.copytree(plain, tmp_path / "renamed")
    for same in (renamed, write_hf(tmp_path / "hf", SPECS["qwen2-300m"], shards=2)):
        ask(same, tmp_path / "tiles")
        assert encoded == []


def test_other_weights_arithmetic_or_router_share_nothing(plain, flash, tmp_path, encoded):
    other = write_original(tmp_path / "other", SPECS["qwen2-300m"], seed=1)
    runs = [
        (plain, {}),
        (plain, {"dtype": "bfloat16"}),
        (plain, {"batch_invariant": True}),
        (other, {}),
        (flash, {}),
        (flash, {"flash_router": False}),
    ]
    for folder, options in runs:
        encoded.clear()
        ask(folder, tmp_path / "tiles", **options)
        assert sum(encoded) == 13
    keys = [path for path in (tmp_path / "tiles").iterdir() if path.is_dir()]
    assert len(keys) == len(runs)


def test_random_weights_have_a_key_too(plain, tmp_path, encoded):
    ask(plain, tmp_path, load_format="dummy")
    ask(plain, tmp_path)
    assert sum(encoded) == 26
    ask(plain, tmp_path, load_format="dummy")
    assert sum(encoded) == 26


def test_damage_costs_an_encoding_and_nothing_else(plain, tmp_path, encoded, caplog):
    first = ask(plain, tmp_path)
    for number, path in enumerate(sorted(tmp_path.rglob("*.safetensors"))[:3]):
        data = bytearray(path.read_bytes())
        data[-1 - 100 * number] ^= 1
        path.write_bytes(data)
    encoded.clear()
    with caplog.at_level(logging.INFO, "tilewise"):
        ask(plain, tmp_path)
        assert sum(encoded) == 3
        assert "10 hits, 3 misses, 3 damaged, 3 written" in caplog.text
    encoded.clear()
    assert answer(ask(plain, tmp_path))[0] == answer(first)[0]
    assert encoded == []


def test_two_engines_share_a_folder(plain, tmp_path):
    options = {"dtype": "float32", "encoder_cache_dir": str(tmp_path), **SIZES}
    prompt = {"prompt": "<image>\nthe hen", "multi_modal_data": {"image": PICTURE}}
    with LLM(str(plain), **options) as one, LLM(str(plain), **options) as other:
        # The second finds as many tiles as the first has written by then, so its batches may be of other sizes.
        outputs = [llm.generate(prompt, PARAMS, use_tqdm=False)[0].outputs[0] for llm in (one, other)]
    assert outputs[0].token_ids == outputs[1].token_ids
    assert len(list(tmp_path.rglob("*.safetensors"))) == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_cache_dir": ""}, "must name a folder"),
        (
            {"encoder_cache_dir": __file__},
            "must name a folder, which need not exist yet, got '.*test_tiles_on_disk.py'",
        ),
        ({"encoder_cache_dir": f"{__file__}/tiles"}, "cannot keep files"),
        ({"encoder_cache_dir_gb": 0}, "encoder_cache_dir_gb must be above 0, got 0"),
        ({"encoder_cache_dir_gb": float("inf")}, "encoder_cache_dir_gb must be finite, got inf"),
        ({"encoder_cache_dir": "tiles", "encoder_cache_dir_gb": 1e-9}, "too few for tiles of 576 bytes: raise it"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(plain, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfig, match=message):
        LLM(str(plain), **{"dtype": "float32", **SIZES, **options})
    assert list(tmp_path.iterdir()) == []
