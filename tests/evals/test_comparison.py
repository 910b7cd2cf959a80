"""Two results side by side: what is read of them, and statistics against numbers worked out otherwise."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from tests.evals.results import DATE, write_result
from tilewise.cli import main
from tilewise.errors import InvalidConfig
from tilewise.evals.comparison import Agreement, Comparison, PairedScores, common_share, mcnemar, read_engine
from tilewise.evals.question import ModelAnswer
from tilewise.evals.results import KeptAnswer, read_result


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
    assert [counts.rate for counts in comparison.counts] == [20.0, 20.0]


def test_without_tokens_the_text_is_compared(folders, tmp_path):
    other = write_result(tmp_path / "c", "t", ["A", "B", "C", "D"], [1, 1, 0, 0])
    comparison = Comparison.of(read_result(folders[0]), read_result(other))
    assert comparison.unit == "characters"
    assert comparison.lines[0].agreement.same == 1.0
    assert comparison.counts[1] is None


def test_an_answer_may_hold_what_ends_a_line_elsewhere(tmp_path):
    folder = write_result(tmp_path / "a", "t", ["a\u2028b"], [1], [[1, 2]])
    kept = KeptAnswer("t", 0, ModelAnswer("a\u2028b", (3, 4)))
    (folder / f"answers_{DATE}.jsonl").write_text(kept.to_json() + "\n", encoding="utf-8")
    assert read_result(folder).rows["t", 0].token_ids == (3, 4)


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
    written = json.loads(file.read_text())
    assert written["lines"][0]["scores"]["p"] == 1.0
    assert written["speeds"] == [{"seconds": 2.0, "tokens": 40, "from_store": 0}] * 2


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


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 6, 0.03125), (6, 0, 0.03125), (3, 3, 1.0), (2, 8, 0.109375), (5, 15, 0.04138947)],
)
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second, p):
    """The last two as any statistics package's binomial test has them."""
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=1e-6)


def test_the_difference_is_paired():
    """Ten questions, of which one is right only in the first and three only in the second."""
    first = [1.0] * 4 + [1.0] + [0.0] * 3 + [0.0] * 2
    second = [1.0] * 4 + [0.0] + [1.0] * 3 + [0.0] * 2
    paired = PairedScores.of(first, second)
    assert (paired.first.value, paired.second.value) == (0.5, 0.7)
    assert (paired.only_first, paired.only_second) == (1, 3)
    # Agresti's form: (b + c - (b - c)^2 / n) / n^2, with n - 1 in place of one n for a sample.
    assert paired.difference.error == pytest.approx(math.sqrt((4 - 4 / 10) / 9 / 10))
    assert paired.difference.value == pytest.approx(0.2)
    assert paired.first.error == pytest.approx(math.sqrt(0.25 * 10 / 9 / 10))
    assert paired.p == mcnemar(1, 3)


def test_scores_that_are_parts_have_no_test_of_right_and_wrong():
    paired = PairedScores.of([0.5, 1.0], [0.75, 1.0])
    assert paired.p is None
    assert (paired.only_first, paired.only_second) == (0, 1)


def test_one_question_has_no_error():
    assert PairedScores.of([1.0], [0.0]).difference.error == 0.0


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ((1, 2, 3), (1, 2, 4), 2 / 3),
        ((1, 2), (1, 2, 3, 4), 0.5),
        ((), (), 1.0),
        ((), (1,), 0.0),
        ("star", "start", 0.8),
    ],
)
def test_the_common_beginning_is_a_share_of_the_longer(first, second, share):
    assert common_share(first, second) == share == common_share(second, first)


def test_agreement_is_a_mean_over_answers():
    agreement = Agreement.of([(1, 2), (3,)], [(1, 2), (4,)])
    assert (agreement.same, agreement.prefix) == (0.5, 0.5)
