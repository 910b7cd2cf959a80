"""The command line as a user meets it: output and exit codes, of real processes where a model answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.called import called
from tests.served import PICTURES
from tests.tiny import SPECS, TWINS, write_original
from tilewise import __version__
from tilewise.cli import main
from tilewise.cli.ask import ASK, AnswerOptions, AskOptions, media_part
from tilewise.cli.flags.settings import engine_options
from tilewise.config import EngineConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen3-300m-head"])


def tilewise(*arguments: object, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tilewise", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=text, check=False)


def test_boxes_are_drawn_over_the_picture(tmp_path):
    asked = (PICTURES / "color_and_shape.png", "Find <ref>red cross</ref> and give its box.", "--draw")
    done = called("ask", *asked, tmp_path / "out.png")
    assert (done.returncode, done.stdout.strip()) == (0, "<ref>red cross</ref><box>[[0,0,250,250]]</box>"), done.stderr
    assert "1 boxes drawn in" in done.stderr
    with Image.open(PICTURES / "color_and_shape.png") as given, Image.open(tmp_path / "out.png") as drawn:
        assert given.size == drawn.size
        assert drawn.getpixel((0, 10)) != given.convert("RGB").getpixel((0, 10))
    assert "no kind of picture" in called("ask", *asked, tmp_path / "out.txt").stderr
    assert "give one that is a file" in called("ask", "What?", "--draw", tmp_path / "out.png").stderr


def test_ask_prints_the_answer_and_the_statistics(model, tmp_path):
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    done = called("ask", tmp_path / "a.png", "the hen?", "--model", model, "--max-tokens", 5, "--stats")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert "9 tiles, 36 image tokens" in done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("download 0.000 s, decode media "))
    parts = [part.rsplit(" ", 2)[0] for part in line.partition(";")[0].split(", ")]
    assert parts == ["download", "decode media", "preprocess", "queue", "prefill", "decode"]


def test_a_file_is_a_picture_or_a_video_by_what_is_in_it(tmp_path):
    """A GIF that does not move is a picture, whatever its name says."""
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "still.gif")
    frames[0].save(tmp_path / "picture.mp4", "PNG")
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moves", "GIF", save_all=True, append_images=frames[1:])
    found = {path.name: media_part(str(path), EngineConfig())["type"] for path in tmp_path.iterdir()}
    video = {"moves.gif": "video_frames", "moves": "video_frames"}
    assert found == {"still.gif": "image_pil", "picture.mp4": "image_pil", **video}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://a/clip.mp4", "video_url"),
        ("https://a/clip.MP4?token=x.png", "video_url"),
        ("https://a/b.gif", "image_url"),
        ("https://a/b?name=clip.mp4", "image_url"),
    ],
)
def test_an_address_is_a_picture_or_a_video_by_its_path(url: str, kind: str):
    assert media_part(url, EngineConfig())["type"] == kind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.png",), "a.png is a file, and no question: put one behind it"),
        (("What?", "a.png", "is it"), "What?: no such file. The question is the last word of the line"),
        ((".", "What?"), ". is a folder: name the files in it"),
        (("a.png", "What?", "--draw", "nowhere/out.png"), "there is no folder nowhere"),
        (("a.png", "caf\udce9"), "is not UTF-8"),
    ],
)
def test_words_in_the_wrong_place(words, message, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert main(["ask", *words]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tilewise", "inspect", "demo"], stdout=full, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr.decode()) == (1, "tilewise: the output: No space left on device.\n")


@pytest.mark.parametrize("words", [("inspect", "demo"), ("tools", "twin", "--list")])
def test_whoever_reads_may_have_seen_enough(words):
    """Tables are printed by rich, which has a status of its own for this."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tilewise", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_a_terminal_that_lacks_characters_loses_no_answer():
    words = ["ask", f"{PICTURES / 'chinese_question.png'}", "Which word is it? <image> 图中的字是什么？"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "tilewise", *words], capture_output=True, env=ascii_only)
    assert (done.returncode, done.stdout.isascii()) == (0, True), done.stderr


def test_generate_reads_a_raw_prompt_from_standard_input(model):
    done = tilewise("generate", "-", "--model", model, "--max-tokens", 3, text="the hen")
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "/no/such.png", "what?"], "/no/such.png: no such file"),
        (["ask", "what?", "--model", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["ask", "  "], "The question is empty"),
        (["ask", "what?", "--max-model-len", "0"], "max_model_len must be above 0, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(arguments, message):
    done = called(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "usage"),
    [
        ("entrypoints.openai.api_server", "tilewise serve [MODEL]"),
        ("entrypoints.openai.run_batch", "tilewise run-batch"),
        ("entrypoints.cli.main", "tilewise [-h]"),
    ],
)
def test_vllms_modules_that_are_run(module, usage):
    command = [sys.executable, "-m", f"tilewise.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert usage in done.stdout


@pytest.mark.parametrize("word", ["--version", "version"])
def test_the_version(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(("words", "meant"), [(["srve"], "serve"), (["bench", "serv"], "serve")])
def test_a_misspelt_verb(words, meant, capsys):
    assert main(words) == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["ps", "--help"], {"services"}),
        (["run-batch", "--help"], {"run_batch"}),
        (["encode-server", "--help"], {"serve"}),
        (["--help"], set()),
        ([], set()),
    ],
)
def test_only_the_verb_that_is_wanted_is_loaded(words, loaded):
    code = (
        "import sys, tilewise.cli\n"
        f"tilewise.cli.main({words})\n"
        "names = ('ask', 'services', 'run_batch', 'serve')\n"
        "print('loaded:', *(name for name in names if 'tilewise.cli.' + name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.rpartition("loaded:")[2].split()) == loaded


def test_help_names_every_verb_and_an_unknown_verb_is_refused():
    assert all(verb in called("--help").stdout for verb in ("ask", "generate", "demo", "tools"))
    assert tilewise("aks").returncode == 2


def test_both_spellings_json_and_repeated_flags():
    arguments = (
        *("a_b", "--max_model_len=64", "--limit_mm_per_prompt", '{"image": 4}', "--trust-remote-code"),
        *("--trust-remote-code", "--mm-processor-kwargs", "max_dynamic_patch=6"),
    )
    line = ASK.read(arguments)
    assert line.take(AskOptions).question == "a_b"
    assert engine_options(line) == {
        "max_model_len": 64,
        "limit_mm_per_prompt": {"image": 4},
        "trust_remote_code": True,
        "mm_processor_kwargs": {"max_dynamic_patch": 6},
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--max-model-len 40K", {"max_model_len": 40960}),
        ("--max-model-len auto", {"max_model_len": -1}),
        ("--max-model-len -1", {"max_model_len": -1}),
        ("--kv-cache-memory-bytes 2G", {"kv_cache_memory_bytes": 2**31}),
        ("--device-memory-utilization 0.5", {"gpu_memory_utilization": 0.5}),
        ("--enforce-eager", {"enforce_eager": True}),
    ],
)
def test_amounts_and_other_names(arguments, expected):
    line = ASK.read(["what?", *arguments.split()])
    line.take(AskOptions)
    assert engine_options(line) == expected


def test_what_is_no_amount_is_refused_with_the_option():
    done = called("ask", "what?", "--max-model-len", "40KB")
    assert done.returncode == 2
    assert "--max-model-len must be a whole number, or one such as 40K" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    ["a.png --model m b.png what?", "--model m a.png b.png what?", "a.png b.png --model m what?"],
)
def test_flags_may_stand_anywhere(arguments):
    line = ASK.read(arguments.split())
    options = line.take(AskOptions)
    assert (line.values["model"], options.media, options.question) == ("m", ("a.png", "b.png"), "what?")
    assert line.take(AnswerOptions).sampling(512).max_tokens == 512


def test_an_empty_text_is_a_text():
    line = ASK.read(["what?", "--system", "", "--hf-token="])
    assert line.take(AskOptions).system == "", "no system message at all"
    assert line.values == {"hf_token": None}, "of the engine's options, it is none"


def test_an_unknown_flag_is_still_refused():
    done = called("ask", "a.png", "--modell", "m", "what?")
    assert done.returncode == 2
    assert "There is no flag --modell." in done.stderr
    assert done.stderr.endswith("Did you mean --model?\n")


def test_the_limit_of_pixels_holds_for_local_pictures(tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    assert main(["ask", str(tmp_path / "a.png"), "--max-image-pixels", "1000", "What?"]) == 1
    assert "40x30 = 1200 pixels, the limit is 1000" in capsys.readouterr().err


def test_a_twin_is_written_and_answers(tmp_path):
    Image.new("RGB", (60, 60), "red").save(tmp_path / "a.png")
    written = called("tools", "twin", "InternVL2-4B", tmp_path / "twin", "--seed", 3, "--shards", 2)
    assert written.returncode == 0, written.stderr
    assert (
        written.stdout
        == f"{tmp_path / 'twin'} holds a twin of InternVL2-4B: its weights are noise, and so are its answers.\n"
    )
    assert len(list((tmp_path / "twin").glob("*.safetensors"))) == 2
    done = called("ask", tmp_path / "a.png", "the hen?", "--model", tmp_path / "twin", "--max-tokens", 5)
    assert done.returncode == 0, done.stderr


def test_the_list_of_twins_has_every_name_whole():
    shown = called("tools", "twin", "--list").stdout
    assert all(f" {name} " in shown for name in TWINS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["InternVL3-8b", "x"], 1, "Did you mean InternVL3-8B?"),
        (["InternVL2-8B", "x", "--format", "hf"], 1, "not published in transformers' format"),
        (["InternVL3-8B", "."], 1, "is there already and not an empty folder"),
        (["InternVL3-8B"], 2, "NAME and FOLDER are needed, or --list"),
    ],
)
def test_a_twin_that_cannot_be_written_is_one_line(arguments, code, message):
    done = called("tools", "twin", *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
