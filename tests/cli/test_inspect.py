"""`tilewise inspect` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.called import called
from tests.inputs.jinjas import QWEN, plain, with_system
from tests.tiny import SPECS, write_original
from tilewise.inputs.templates import SYSTEM_INTERNVL2_5

ESCAPE = "\x1b["


@pytest.fixture
def model(tmp_path):
    return write_original(tmp_path / "model", SPECS["qwen3-300m-head"])


def inspect(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return called("inspect", *arguments, **environment)


def page(*arguments: object, **environment: str) -> str:
    done = inspect(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def found(*arguments: object) -> dict:
    return json.loads(page(*arguments, "--json"))


def test_the_demo_model_by_default():
    text = page()
    assert text.startswith("demo  ")
    assert "internvl2_5  (config.json: template)" in text
    for line in ("<|im_start|>user", "<image>", "What is in this picture?<|im_end|>", "<|im_start|>assistant"):
        assert f"  | {line}\n" in text
    assert "13 tiles x 16" in text
    assert "1024x768: 4 columns x 3 rows + thumbnail = 13 tiles, 208 tokens" in text


def test_nothing_of_torch_is_loaded(model):
    code = (
        f"import sys; from tilewise.cli import main; code = main(['inspect', {str(model)!r}])\n"
        "sys.exit(code or bool({'torch', 'transformers', 'jinja2', 'httpx'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_pictures_and_a_question_as_ask_takes_them(model, tmp_path):
    for name, size in (("a.png", (112, 56)), ("b.png", (56, 56))):
        Image.new("RGB", size).save(tmp_path / name)
    example = found(model, tmp_path / "a.png", tmp_path / "b.png", "What has changed?")["example"]
    assert "user\nImage-1: <image>\nImage-2: <image>\nWhat has changed?<|im_end|>" in example["prompt"]
    assert [picture["size"] for picture in example["pictures"]] == [[112, 56], [56, 56]]
    by_flag = found(tmp_path / "a.png", tmp_path / "b.png", "What has changed?", "--model", model)["example"]
    sizes = found(model, "What has changed?", "--image-size", "112x56", "--image-size", "56x56")["example"]
    assert example == by_flag == sizes


def test_a_picture_alone_is_shown_with_the_demo_model(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    result = found(tmp_path / "a.png")
    assert result["model"] == "demo"
    assert result["example"]["pictures"][0]["size"] == [100, 50]


def test_system_message_thinking_and_text_alone(model):
    text = found(model, "--text-only", "--system", "Be brief.", "Who?")["example"]
    assert text["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>")
    assert text["pictures"] == []
    assert "<think>" in found(model, "--thinking")["example"]["prompt"]


def test_options_of_the_engine(model):
    fewer = found(model, "--mm-processor-kwargs", "max_dynamic_patch=2")
    assert fewer["tiling"]["max_tiles"] == 2
    shared = found(model, "--tile_budget=share", *["--image-size", "600x300"] * 6)
    assert [picture["tiles"] for picture in shared["example"]["pictures"]] == [3] * 6


def test_ids_shorten_the_rows_of_pictures(model):
    assert "<IMG_CONTEXT> x 52" in page(model, "--ids")
    ids = found(model)["example"]["ids"]
    assert [item["count"] for item in ids if isinstance(item, dict)] == [52]


def test_equal_pictures_share_a_line(model):
    text = page(model, *["--image-size", "112x56"] * 3, "--image-size", "56x56")
    assert "1-3    112x56: 2 columns x 1 rows + thumbnail = 3 tiles, 12 tokens each" in text
    assert "4      56x56: whole = 1 tile, 4 tokens\n" in text


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}]
)
def test_chinese_survives_every_locale(model, options, locale):
    command = [sys.executable, "-m", "tilewise", "inspect", str(model), *options]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **locale}, check=True)
    assert SYSTEM_INTERNVL2_5 in done.stdout.decode("utf-8")


def test_colours_only_where_they_are_wanted(model):
    assert ESCAPE not in page(model)
    coloured = page(model, FORCE_COLOR="1", TERM="xterm-256color", COLUMNS="200")
    assert f"{ESCAPE}1;35m<|im_start|>" in coloured
    assert ESCAPE not in page(model, FORCE_COLOR="1", NO_COLOR="1")


def test_text_that_looks_like_a_token_does_not_look_like_one(model):
    coloured = page(model, "<|im_end|>", FORCE_COLOR="1", TERM="xterm-256color")
    assert f"{ESCAPE}1m<|im_end|>" in coloured.replace("\n", "")


def test_a_template_that_differs_is_a_warning(model):
    (model / "chat_template.jinja").write_text(plain())
    text = page(model)
    assert "chat_template.jinja differs: engines that follow it ask the model something else" in text
    assert "It has no default system message" in text
    assert r"ours    <|im_start|>system\n你是书生·万象" in text
    assert r"theirs  <|im_start|>user\nWho are you?<|im_end|>\n" in text


def test_a_template_that_is_the_same_and_one_that_fails(model):
    (model / "chat_template.jinja").write_text(with_system(SYSTEM_INTERNVL2_5))
    (model / "chat_template.json").write_text(json.dumps({"chat_template": QWEN}))
    text = page(model)
    assert "chat_template.jinja: same prompts as above" in text
    assert "chat_template.json differs" in text
    assert "can only concatenate str" in text
    first, second = found(model)["jinja"]
    assert {item["verdict"] for item in first["comparisons"]} == {"same"}
    assert {item["verdict"] for item in second["comparisons"]} == {"same", "differs", "fails"}


@pytest.mark.parametrize(("source", "code"), [(with_system(SYSTEM_INTERNVL2_5), 0), (plain(), 1), ("{% broken", 1)])
def test_strict_is_for_scripts(model, source, code):
    (model / "chat_template.jinja").write_text(source)
    assert inspect(model, "--strict").returncode == code
    assert inspect(model, "--strict", "--json").returncode == code
    assert inspect(model).returncode == 0


def test_a_checkpoint_cannot_steer_the_terminal(model):
    (model / "chat_template.jinja").write_text("\x1b]0;title\x07\u202eabc")
    text = page(model)
    assert r"\x1b]0;title\x07\u202eabc" in text
    assert "\x1b" not in text


def test_flash_counts_are_bounds(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "flash_mode": True, "flash_relative_threshold": 0.5}))
    text = page(model)
    assert "1 or 4 tokens a tile; thresholds: relative 0.5, absolute not in config.json" in text
    total = found(model)["example"]["total_tokens"]
    assert f"at most: {total - 13 * 3} if the router compresses every tile" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["/no/such/model"], 1, "/no/such/model: no such folder"),
        (["demo", "nothing.png", "What?"], 1, "nothing.png: no such file"),
        (["demo", "nothing", "What?"], 1, "nothing: no such file"),
        (["demo", " "], 1, "The question is empty"),
        (["demo", "--image-size", "12"], 2, "'12' is not a size such as 1024x768"),
        (["demo", "--image-size", "300000x9"], 1, "300000x9"),
        (["demo", "--image-size", "90x90", "--text-only"], 1, "exclude each other"),
        (["demo", "a.png", "--text-only"], 1, "a.png came with --image-size or --text-only"),
        (["demo", "--mm-processor-kwargs", "max_patch=2"], 1, "has no option 'max_patch'"),
        (["demo", "--image-size", "9x9", "--max-image-pixels", "80"], 1, "the limit is 80"),
        (["demo", "--max-tokens", "3"], 2, "There is no flag --max-tokens"),
        (["demo", "<image> and <image>"], 1, "2 <image> markers for 1 pictures"),
    ],
)
def test_a_mistake_is_one_line(arguments, code, message):
    done = inspect(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
