"""What is written, and what happens to it when it cannot be."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from tilewise import SamplingParams
from tilewise.errors import InvalidConfig
from tilewise.evals.question import ModelAnswer, Question
from tilewise.evals.results import KeptAnswer, QuestionCounts, check_writable, write_answers, write_run, write_text
from tilewise.evals.run import mmmu_report


def test_a_folder_is_made_and_one_that_cannot_be_is_refused(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig, match="Nothing can be written to"):
        check_writable(tmp_path / "file")


def test_what_cannot_be_written_is_kept_elsewhere(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "tilewise"):
        path = write_text(tmp_path / "gone" / "r.json", "{}")
    assert path.read_text() == "{}"
    assert str(path) in caplog.text
    path.unlink()


class SilentTracker:
    """Fails as lm_eval's does: without a word."""

    date_id = "now"
    general_config_tracker = SimpleNamespace(model_name_sanitized="m")

    def save_results_aggregated(self, results, samples):
        pass

    save_results_samples = None


def test_results_that_lm_eval_did_not_write_are_written(tmp_path):
    (tmp_path / "m").mkdir()
    write_run(tmp_path, SilentTracker(), {"results": {}}, None)
    assert (tmp_path / "m" / "results_now.json").exists()
    question = Question("t", 3, "what?", SamplingParams())
    path = write_answers(tmp_path, SilentTracker(), [(question, ModelAnswer("星", (1, 2)))])
    assert path.read_text().startswith('{"task": "t", "row": 3, "text": "星", "token_ids": [1, 2],')


def test_the_report_of_mmmu():
    samples = {
        "mmmu_val_art": [{"acc": 1.0}, {"acc": 0.0}, {"acc": 1.0}],
        "mmmu_val_math": [{"acc": 0.0}],
        "other": [{}],
    }
    config = {"tilewise": {"from_store": 2, "failed": ["x"]}, "model_args": {"pretrained": "demo"}}
    configs = {"mmmu_val_art": {"task_alias": "Art"}, "mmmu_val_math": {}, "other": {}}
    made = mmmu_report({"samples": samples, "config": config, "configs": configs})
    assert made["overall"] == {"accuracy": 50.0, "correct": 2, "total": 4}
    assert made["subjects"]["Art"] == {"accuracy": 66.67, "correct": 2, "total": 3}
    assert set(made["subjects"]) == {"Art", "mmmu_val_math"}
    assert (made["from_store"], made["failed"]) == (2, ["x"])


def test_an_answer_is_read_as_it_was_written():
    kept = KeptAnswer("t", 3, ModelAnswer("星", (1, 2), "stop", 7, 0.5))
    assert KeptAnswer.from_json(kept.to_json()) == kept


def test_failures_are_named_up_to_ten():
    counts = QuestionCounts(12, failed=[f"t, row {row}: bad" for row in range(12)], pictures_left_out=3)
    assert QuestionCounts.from_json(counts.as_json()) == counts
    lines = list(counts.sentences())
    assert lines[1] == "3 pictures beyond max_images were left out"
    assert lines[2].startswith("12 questions could not be asked")
    assert lines[-1] == "  and 2 more, in the results"
    assert len(lines) == 14
