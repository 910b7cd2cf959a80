"""Golden answers are the demo's own, and a machine that computes something else is told so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest

from tests.called import called
from tilewise.cli import doctor as verb
from tilewise.doctor.golden import (
    DEMO,
    PLAIN,
    Arithmetic,
    GoldenAnswer,
    Mode,
    compare,
    modes_here,
    read_golden,
    try_mode,
)
from tilewise.errors import InvalidConfig
from tilewise.platforms.ops import TorchOps

GOLDEN = read_golden()
AS_DEFINED = Mode("as defined", 2e-3, PLAIN, plain=True)


def test_they_are_the_right_answers_to_the_demos_questions() -> None:
    items = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    right = {turn["question"]: turn["answer"] for item in items for turn in item["turns"]}
    assert GOLDEN.keys() == set(get_args(Arithmetic))
    for answers in GOLDEN.values():
        with_pictures = answers[:-1]
        assert len(with_pictures) == len(items)
        assert [answer.text for answer in with_pictures] == [right[answer.question] for answer in with_pictures]


def test_they_come_of_the_weights_that_ship() -> None:
    report = try_mode(AS_DEFINED, "demo", GOLDEN["floats"])
    assert (report.verdict, report.right, report.why) == ("right", len(GOLDEN["floats"]), "")


def test_a_norm_that_is_a_little_wrong_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    true = TorchOps.rms_norm
    monkeypatch.setattr(TorchOps, "rms_norm", lambda self, x, weight, eps: true(self, x, weight, eps) * 1.01)
    report = try_mode(AS_DEFINED, "demo", GOLDEN["floats"])
    assert report.verdict == "off"
    assert report.worst is not None
    assert report.worst > 2e-3
    assert f"off by {report.worst:.4f}, allowed is 0.002" in report.why


def test_an_op_that_fails_is_told_and_an_option_that_cannot_be_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    many = Mode("many ranks", 1.0, {**PLAIN, "tensor_parallel_size": 3})
    assert try_mode(many, "demo", GOLDEN["floats"]).verdict == "not here"
    monkeypatch.setattr(TorchOps, "rms_norm", lambda *_: 1 / 0)
    report = try_mode(AS_DEFINED, "demo", GOLDEN["floats"])
    assert (report.verdict, report.why) == ("failed", "ZeroDivisionError: division by zero")


def changed(**changes: object) -> list[GoldenAnswer]:
    first, *others = GOLDEN["floats"]
    return [replace(first, **changes), *others]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tokens": [1, 2], "text": "dog"}, "'dog', not '"),
        ({"prompt": "0" * 32}, "was prepared as another prompt"),
        ({"scores": [{"1": float("nan")}]}, "off by inf"),
    ],
)
def test_what_differs_is_said(changes: dict[str, object], why: str) -> None:
    report = compare(AS_DEFINED, changed(**changes), GOLDEN["floats"])
    assert report.verdict == "off"
    assert why in report.why


def test_modes_have_names_of_their_own_and_golden_answers() -> None:
    modes = modes_here()
    assert len({mode.name for mode in modes}) == len(modes) > 12
    assert {mode.arithmetic for mode in modes} == GOLDEN.keys()


def test_a_device_that_is_named_is_the_one_that_is_tried() -> None:
    assert all(mode.options["device"] == "cpu" for mode in modes_here("cpu"))
    with pytest.raises(InvalidConfig, match="device=npu is not possible"):
        modes_here("npu")


@pytest.mark.parametrize("wrong", [False, True])
def test_the_command_prints_a_table_and_its_status_says_the_same(wrong: bool, monkeypatch, capsys) -> None:
    import tilewise.doctor.golden as golden_module

    if wrong:
        true = TorchOps.rms_norm
        monkeypatch.setattr(TorchOps, "rms_norm", lambda self, x, weight, eps: true(self, x, weight, eps) * 1.01)
    monkeypatch.setattr(
        golden_module, "modes_here", lambda device: [AS_DEFINED, replace(AS_DEFINED, name="again", plain=False)]
    )
    status = verb.DOCTOR.call(["--golden"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODE", "ANSWERS", "WORST", "ALLOWED", "VERDICT"]
    assert lines[1].startswith("as defined")
    assert lines[1].endswith("off" if wrong else "right")
    assert status == wrong
    right = sum(line.endswith("right") for line in lines)
    assert lines[-1] == (f"{right} of 2 modes are right." if wrong else "All 2 modes are right.")


def test_the_two_doctors_are_not_one() -> None:
    found = called("doctor", "--golden", "http://127.0.0.1:1/v1", "demo")
    assert found.returncode == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--golden", "--device", "npu"), "device=npu is not possible"),
        (("--golden", "--ops"), "--ops and --golden are two examinations"),
        (("http://127.0.0.1:1/v1", "demo", "--device", "cpu"), "--device cpu is about this machine"),
    ],
)
def test_nothing_that_is_asked_for_is_passed_over(words: tuple[str, ...], said: str) -> None:
    found = called("doctor", *words)
    assert found.returncode != 0
    assert said in found.stderr
