"""The spot check as a user runs it, and the rule of its verdicts."""

from __future__ import annotations

import json

import pytest

from tilewise.assets import ImageAsset
from tilewise.cli import main
from tilewise.evals.question import ModelAnswer
from tilewise.evals.spot import CASES, fault, language_of, repeats


def test_it_asks_judges_and_writes(tmp_path, capsys):
    image, report, log = str(ImageAsset("reading_text").path), tmp_path / "spot.json", tmp_path / "log" / "spot.log"
    command = ["eval", "spot", "--image", image, "--max-tokens", "12", "--json", str(report), "--log", str(log)]
    assert main(command) == 1  # the demo model describes nothing
    cases = json.loads(report.read_text())["cases"]
    assert [case["name"] for case in cases] == [
        "text",
        "first description",
        "second description",
        "reasoning",
        "Chinese",
    ]
    assert {case["picture"] for case in cases} == {"reading_text.png"}
    assert all(case["tokens"] <= 12 and case["seconds"] > 0 for case in cases)
    assert any(case["verdict"].startswith("FAIL: ") for case in cases)
    lines = log.read_text().splitlines()
    assert [json.loads(line.partition(" ")[2]) for line in lines] == cases
    assert "of 5 pass" in capsys.readouterr().out


def test_mistakes_cost_no_loading(tmp_path, capsys):
    assert main(["eval", "spot", "--image", str(tmp_path / "none.png")]) == 1
    assert "none.png: no such file" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["eval", "spot", "--json", str(tmp_path / "file" / "x.json")]) == 1
    assert "Nothing can be written to" in capsys.readouterr().err


TEXT, DESCRIPTION, CHINESE = CASES[0], CASES[1], CASES[4]


def said(text, ids=(1, 2, 3), finish="stop"):
    return ModelAnswer(text, tuple(ids), finish)


@pytest.mark.parametrize(
    ("answer", "case", "expected"),
    [
        (said("The sign says STOP."), DESCRIPTION, None),
        (said("42"), TEXT, None),
        (said("42"), DESCRIPTION, "no words"),
        (said(" \n"), TEXT, "empty"),
        (said("A red", finish="length"), DESCRIPTION, "cut off after 3 tokens"),
        (said("a a a a a a a a", [7] * 8), DESCRIPTION, "repeats itself"),
        (said("一座塔和樱花。"), CHINESE, None),
        (said("一座 Tokyo 塔和樱花开了。"), CHINESE, None),
        (said("A tower."), CHINESE, "not in Chinese"),
        (said("一座塔和樱花。"), DESCRIPTION, "not in English"),
        (said("a \ufffd"), DESCRIPTION, "characters that cannot be decoded"),
    ],
)
def test_each_fault_has_a_name(answer, case, expected):
    assert fault(answer, case) == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7] * 7, False),  # too short to be more than an emphasis
        ([7] * 8, True),
        ([1, 2, 3] * 3, False),
        ([1, 2, 3] * 4, True),
        ([9, 9, *[1, 2, 3] * 4, 8], True),
        (list(range(40)) * 5, False),  # longer than any period that is looked for
        (list(range(32)) * 4, True),
        ([], False),
        ([1, 2, 1, 2, 1, 3, 1, 2, 1, 2, 1, 3], False),
    ],
)
def test_repetition_is_a_stretch_four_times_in_a_row(ids, expected):
    assert repeats(tuple(ids)) is expected


def test_the_language_is_that_of_most_letters():
    assert language_of("三 cats") == "English"
    assert language_of("12:30!") is None
