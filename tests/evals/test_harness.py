"""lm_eval with our models and tasks: `make test-harness`, since lm_eval is an extra."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evals.local_tasks import write_mmmu, write_pictures, write_texts
from tilewise.cli import main
from tilewise.errors import InvalidConfig

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.harness, pytest.mark.filterwarnings("ignore")]


def run(tmp_path: Path, *arguments: object, output: str = "out") -> dict:
    """The results that a command writes."""
    folder = tmp_path / output
    assert main(["eval", "run", "--output-path", str(folder), *map(str, arguments)]) == 0
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def test_the_demo_answers_its_held_out_questions(tmp_path, capsys):
    results = run(tmp_path, "--tasks", "tilewise_demo", "--apply-chat-template", "--limit", 4)
    assert results["results"]["tilewise_demo"]["exact_match,none"] >= 0.8
    assert results["config"]["tilewise"]["questions"] == 44
    assert results["config"]["tilewise"]["failed"] == []
    shown = capsys.readouterr().out
    assert "- small_print" in shown
    assert "44 questions, 0 answers from the store" in shown
    (answers,) = tmp_path.rglob("answers_*.jsonl")
    assert len(answers.read_text().splitlines()) == 44
    assert len(list(tmp_path.rglob("samples_*.jsonl"))) == 11


def test_texts_are_scored_completed_and_measured(tmp_path):
    """The three things that lm_eval asks of a model for texts, on a data set by path, with our template and without."""
    write_texts(tmp_path / "tasks")
    tasks = "colors_choice,colors_generate,colors_rolling"
    for template in ([], ["--apply-chat-template"]):
        output = f"out{len(template)}"
        results = run(tmp_path, "--tasks", tasks, "--include-path", tmp_path / "tasks", *template, output=output)
        assert results["config"]["tilewise"]["failed"] == []
        assert results["n-samples"]["colors_choice"]["effective"] == 3
        assert results["results"]["colors_rolling"]["word_perplexity,none"] > 1


def test_a_choice_is_the_likeliest(tmp_path):
    """The winner and its score are those of the engine asked directly."""
    from tilewise.evals.models import PictureModel

    write_texts(tmp_path / "tasks")
    run(tmp_path, "--tasks", "colors_choice", "--include-path", tmp_path / "tasks", "--apply-chat-template")
    (file,) = tmp_path.rglob("samples_colors_choice*.jsonl")
    sample = json.loads(file.read_text().splitlines()[0])
    found = [float(scored[0]) for ((scored, *_),) in zip(sample["resps"], strict=True)]
    model = PictureModel("demo")
    dialogue = model.apply_chat_template([{"role": "user", "content": sample["doc"]["question"]}])
    requests = [type("R", (), {"args": (dialogue, color), "task_name": "t", "doc_id": 0}) for color in ("red", "blue")]
    assert [score for score, _ in model.loglikelihood(requests)] == pytest.approx(found, abs=1e-4)
    model.close()


def test_mmmu_by_subject(tmp_path):
    """Two subjects of MMMU's columns in a local copy, through lm_eval's own tasks."""
    write_mmmu(tmp_path / "data", {"Accounting": 3, "Art": 2})
    run(
        tmp_path,
        *("--tasks", "mmmu_val_accounting,mmmu_val_art", "--data-dir", tmp_path / "data"),
        *("--apply-chat-template", "--mmmu-json", tmp_path / "mmmu.json"),
    )
    report = json.loads((tmp_path / "mmmu.json").read_text())
    assert {name: subject["total"] for name, subject in report["subjects"].items()} == {"Accounting": 3, "Art": 2}
    assert report["overall"]["total"] == 5
    assert report["overall"]["correct"] == sum(subject["correct"] for subject in report["subjects"].values())
    (file,) = tmp_path.rglob("samples_mmmu_val_accounting*.jsonl")
    prompt = json.loads(file.read_text().splitlines()[0])["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("<image>") == 2  # named twice in the question


def test_a_run_that_is_killed_goes_on(tmp_path):
    write_pictures(tmp_path / "tasks", rows=60)
    command = [sys.executable, "-m", "tilewise", "eval", "run", "--tasks", "pictures", "--batch-size", "4"]
    command += ["--include-path", str(tmp_path / "tasks"), "--apply-chat-template"]
    command += ["--resume-dir", str(tmp_path / "kept"), "--output-path", str(tmp_path / "out")]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and kept(tmp_path / "kept") < 5:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = kept(tmp_path / "kept")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 5 <= before < 60
    assert f"60 questions, {before} answers from the store" in done.stdout
    assert kept(tmp_path / "kept") == 60


def kept(folder: Path) -> int:
    import sqlite3

    if not (folder / "answers.sqlite").exists():
        return 0
    database = sqlite3.connect(folder / "answers.sqlite", timeout=30)
    try:
        return int(database.execute("select count(*) from answers").fetchone()[0])
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        database.close()


def test_a_picture_that_does_not_open_costs_its_own_question(tmp_path, capsys):
    write_pictures(tmp_path / "tasks", rows=4, damaged={1: b"<html>gone</html>", 2: None})
    command = ("--tasks", "pictures", "--include-path", tmp_path / "tasks", "--apply-chat-template")
    results = run(tmp_path, *command)
    failed = results["config"]["tilewise"]["failed"]
    assert [line.partition(":")[0] for line in failed] == ["pictures, row 1", "pictures, row 2"]
    assert results["results"]["pictures"]["exact_match,none"] == 0.5
    assert "2 questions could not be asked" in capsys.readouterr().out


def test_pictures_beyond_max_images_are_left_out(tmp_path):
    write_pictures(tmp_path / "tasks", rows=2, each=3)
    command = ("--tasks", "pictures", "--include-path", tmp_path / "tasks", "--apply-chat-template")
    results = run(tmp_path, *command, "--max-images", 1)
    assert results["config"]["tilewise"]["pictures_left_out"] == 4
    assert results["config"]["tilewise"]["failed"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "tilewise_dem"], "There is no task 'tilewise_dem'. Did you mean tilewise_demo?"),
        (["--tasks", "nocolumn"], "The columns of its data are question, answer, images."),
        (["--tasks", "nofile"], "Task nofile cannot be loaded"),
        (["--tasks", "/no/such.yaml"], "tasks=/no/such.yaml: no such file"),
        (["--tasks", "pictures", "--output-path", "/proc/here"], "Nothing can be written to /proc/here"),
        (["--tasks", "pictures", "--mmmu-json", "m.json"], "mmmu_json needs a task of MMMU"),
        (["--tasks", "pictures", "--limit", "0"], "limit must be above 0"),
        (["--tasks", "pictures", "--gen-kwargs", "top_kk=3"], "top_kk"),
        (["--tasks", "pictures", "--include-path", "/no/such"], "include_path=/no/such is not a folder"),
        (["--tasks", "pictures", "--apply-chat-template", "other"], "the template of demo is internvl2_5"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "tasks", rows=1)
    assert main(["eval", "run", "--include-path", "tasks", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_value_that_a_flag_does_not_take_is_refused_before_anything_is_read(capsys):
    assert main(["eval", "run", "--tasks", "pictures", "--quantization", "int3"]) == 2
    assert "--quantization must be one of int8, " in capsys.readouterr().err


def test_lm_evals_own_command_knows_our_models_and_keeps_its_own(tmp_path):
    from lm_eval.api.registry import get_model

    import tilewise.evals

    assert set(tilewise.evals.MODELS) == {"tilewise", "tilewise-vlm"}
    assert get_model("local-chat-completions").__name__ == "LocalChatCompletion"
    assert get_model("tilewise-vlm").MULTIMODAL
    assert not get_model("tilewise").MULTIMODAL
    command = [sys.executable, "-m", "tilewise.evals", "--model", "tilewise-vlm", "--model_args", "pretrained=demo"]
    command += ["--tasks", "tilewise_demo_word", "--apply_chat_template", "--limit", "3", "--batch_size", "auto"]
    done = subprocess.run([*command, "--output_path", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["tilewise"]["questions"] == 3


def test_lm_evals_cache_keeps_each_answer(tmp_path, demo):
    """`--use_cache` of lm_eval finds what our models hand it, under the arguments that it asks with."""
    import lm_eval

    from tilewise.evals import TASKS
    from tilewise.evals.models import PictureModel

    model = PictureModel("demo")
    manager = lm_eval.tasks.TaskManager(include_path=TASKS, include_defaults=False)
    options = {"tasks": ["tilewise_demo_word"], "task_manager": manager, "limit": 3, "apply_chat_template": True}
    for _ in range(2):
        lm_eval.simple_evaluate(model=model, use_cache=str(tmp_path / "cache"), **options)
    assert model.client.counts.questions == 3
    model.close()


def test_without_lm_eval_the_extra_is_named(tmp_path):
    """In a process that cannot find it."""
    hidden = tmp_path / "hide"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'lm_eval' else find(name, package)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tilewise", "eval", "run", "--tasks", "tilewise_demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "pip install 'tilewise[eval]'" in done.stderr
    shutil.rmtree(hidden)


def test_data_of_the_hub_are_missed_before_the_model_is_loaded(tmp_path, monkeypatch):
    from tilewise.eval_options import EvalOptions, TaskOptions
    from tilewise.evals.run import evaluate

    monkeypatch.setattr("tilewise.evals.run._run", lambda *_: pytest.fail("it went on"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidConfig, match=r"Task mmmu_val_art cannot be loaded .*--data-dir"):
        evaluate(EvalOptions(tasks=("mmmu_val_art",)), TaskOptions(data_dir=tmp_path))
