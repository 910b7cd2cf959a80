"""The spot check as a user runs it."""

from __future__ import annotations

import json

from tilewise.assets import ImageAsset
from tilewise.cli import main


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
