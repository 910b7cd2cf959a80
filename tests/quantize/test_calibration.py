"""Samples: those that ship, and those of a user's folder."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.tiny import SPECS, write_hf
from tests.weights.broken import refused
from tilewise.errors import InvalidConfig, InvalidMedia, InvalidRequest
from tilewise.quantize.calibration import samples_of, shipped_samples


def test_a_folder_of_pictures_and_prompts(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("What is tea?")
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (40, 20), "blue").save(tmp_path / "inner" / "c.jpg")
    lines = ['"A bare prompt"', '{"prompt": "With a picture", "images": ["inner/c.jpg"]}', ""]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    (tmp_path / ".hidden").write_text("no picture at all")
    found = list(samples_of(tmp_path))
    assert [sample.turns[0] for sample in found[1:]] == ["What is tea?", "A bare prompt", "With a picture"]
    assert [[picture.size for picture in sample.pictures] for sample in found] == [[(30, 20)], [], [], [(40, 20)]]


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("a.png", b"not a picture", InvalidMedia, ("a.png",)),
        ("a.png", "cut", InvalidMedia, ("a.png",)),
        ("a.docx", b"PK", InvalidMedia, ("a.docx",)),
        ("a.txt", b"\xff\xfe\x00", InvalidRequest, ("a.txt", "UTF-8")),
        ("a.jsonl", b'"one"\n{"promt": "two"}', InvalidRequest, ("a.jsonl:2", "promt")),
        ("a.jsonl", b"one", InvalidRequest, ("a.jsonl:1", "JSON")),
        ("a.jsonl", b'{"prompt": "x", "images": ["../b.png"]}', InvalidMedia, ("outside",)),
        ("a.jsonl", b'{"prompt": "x", "images": ["b.png"]}', InvalidMedia, ("b.png", "no such file")),
        (".b", b"", InvalidConfig, ("no files",)),
    ],
)
def test_what_is_no_sample(tmp_path, name, content, kind, words):
    if content == "cut":
        Image.effect_noise((200, 200), 80).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:9000]
    (tmp_path / name).write_bytes(content)
    refused(kind, lambda: list(samples_of(tmp_path)), *words)


def test_the_set_that_ships():
    found = list(shipped_samples())
    assert sum(bool(sample.pictures) for sample in found) > 15
    assert len({sample.turns[0] for sample in found}) > 20
    assert [len(sample.pictures) for sample in found] == [len(sample.pictures) for sample in shipped_samples()]


def test_texts_alone_do_not_calibrate_a_tower(tmp_path):
    from tilewise.quantize import QuantizeOptions
    from tilewise.quantize.run import quantize

    source = write_hf(tmp_path / "source", SPECS["qwen2-300m"])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("What is tea?")
    options = QuantizeOptions(
        model=str(source), out=str(tmp_path / "out"), scheme="w4a16", vision=True, calibration=str(tmp_path / "texts")
    )
    refused(InvalidConfig, lambda: quantize(options, show=False), "needs pictures")


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("a.txt", " \n", InvalidRequest, "a.txt is empty"),
        ("a.jsonl", "\n\n", InvalidRequest, "a.jsonl has no prompts"),
        ("a.jsonl", '"Hi"\n{"prompt": "What?", "images": ["nope.png"]}', InvalidMedia, "a.jsonl:2: "),
    ],
)
def test_files_without_prompts_and_lines_without_their_pictures_are_named(tmp_path, name, text, kind, said):
    (tmp_path / name).write_text(text)
    refused(kind, lambda: list(samples_of(tmp_path)), said)
