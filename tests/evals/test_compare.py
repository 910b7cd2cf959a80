"""Reading two results and setting them side by side."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.evals.results import DATE, write_result
from tilewise.cli import main
from tilewise.errors import InvalidConfig
from tilewise.evals.compare.command import read_engine
from tilewise.evals.compare.comparison import Comparison
from tilewise.evals.compare.result import read_result


@pytest.fixture
def folders(tmp_path):
    first = write_result(tmp_path / "a", "t", ["A", "B", "C", "D"], [1, 1, 0, 0], [[1, 2], [3], [4], [5, 6]])
    second = write_result(tmp_path / "b", "t", ["A", "X", "C", "D"], [1, 0, 1, 0], [[1, 2], [9], [4], [5, 7]])
    return first, second


def test_scores_agreement_and_speed(folders):
    comparison = Comparison.of(*map(read_result, folders))
    (line,) = comparison.lines
    assert (line.task, line.metric, line.scores.count) == ("T", "acc", 4)
    assert (line.scores.only_first, line.scores.only_second) == (1, 1)
    assert (line.agreement.same, line.agreement.prefix) == (0.5, 0.625)
    assert comparison.unit == "tokens"
    assert [speed.rate for speed in comparison.speeds] == [20.0, 20.0]


def test_without_tokens_the_text_is_compared(folders, tmp_path):
    other = write_result(tmp_path / "c", "t", ["A", "B", "C", "D"], [1, 1, 0, 0])
    comparison = Comparison.of(read_result(folders[0]), read_result(other))
    assert comparison.unit == "characters"
    assert comparison.lines[0].agreement.same == 1.0
    assert comparison.speeds[1] is None


def test_questions_of_one_alone_are_left_out(folders, tmp_path):
    longer = write_result(tmp_path / "c", "t", list("ABCDE"), [1, 1, 0, 0, 1])
    assert Comparison.of(read_result(folders[0]), read_result(longer)).left_out == 1
    other = write_result(tmp_path / "d", "u", ["A"], [1])
    with pytest.raises(InvalidConfig, match="no question in common"):
        Comparison.of(read_result(folders[0]), read_result(other))


def test_a_row_of_the_same_number_that_asks_something_else_is_left_out(folders):
    file = folders[1] / f"samples_t_{DATE}.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = lines[0].replace('"q": 0', '"q": "other"')
    file.write_text("\n".join(lines))
    comparison = Comparison.of(*map(read_result, folders))
    assert (comparison.lines[0].scores.count, comparison.left_out) == (3, 2)


def test_the_newest_result_below_a_folder_is_read(folders, tmp_path):
    newer = folders[0] / f"results_{DATE.replace('2026', '2027')}.json"
    newer.write_text((folders[0] / f"results_{DATE}.json").read_text())
    with pytest.raises(InvalidConfig, match=r"samples_t_2027.*--log-samples"):
        read_result(folders[0])
    assert len(read_result(folders[0] / f"results_{DATE}.json").rows) == 4


@pytest.mark.parametrize(
    ("second", "message"), [("/no/such", "/no/such: no such result"), ("{a}/empty", "has no results_*.json")]
)
def test_what_is_no_result_is_named(folders, second, message, capsys):
    (folders[0] / "empty").mkdir()
    assert main(["eval", "compare", str(folders[0]), second.format(a=folders[0])]) == 1
    assert message in capsys.readouterr().err


def test_the_command_prints_and_writes(folders, tmp_path, capsys):
    file = tmp_path / "out" / "c.json"
    assert main(["eval", "compare", *map(str, folders), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "50.0 ± 28.9" in shown
    assert "1 / 1" in shown
    assert "B makes 1.00 times as many tokens a second as A." in shown
    assert json.loads(file.read_text())["lines"][0]["scores"]["p"] == 1.0


def test_the_picture_is_one(folders, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["eval", "compare", *map(str, folders), "--plot", str(tmp_path / "c.png")]) == 0
    with Image.open(tmp_path / "c.png") as picture:
        picture.load()
        assert picture.width > 1000


def test_an_engine_is_a_model_with_options():
    assert read_engine("demo") == {"model": "demo"}
    assert read_engine("./m,quantization=int8,max-model-len=512,batch_invariant=true") == {
        "model": "./m",
        "quantization": "int8",
        "max_model_len": 512,
        "batch_invariant": True,
    }
    with pytest.raises(InvalidConfig, match="is no option=value"):
        read_engine("demo,int8")
