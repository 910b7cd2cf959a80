"""Runs one evaluation, and reports its scores.

Folders, options and tasks are checked before a model is loaded: mistakes cost least there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.eval_options import EvalOptions, TaskOptions
from tilewise.evals.find_tasks import find_tasks
from tilewise.evals.question import ModelAnswer, Question
from tilewise.evals.results import as_json, check_writable, write_answers, write_run, write_text
from tilewise.host import require_extra

if TYPE_CHECKING:
    from pathlib import Path

    from tilewise.evals.models import PictureModel

MMMU = "mmmu_val"


def evaluate(options: EvalOptions, questions: TaskOptions, **engine: Any) -> dict[str, Any]:
    """Run an evaluation of an engine with these options, and write its files.

    Returns lm_eval's results, `samples` among them.
    """
    require_extra("lm_eval", "eval", "Evaluation")
    for path in (options.output_path, options.resume_dir):
        check_writable(path)
    check_writable(options.mmmu_json and options.mmmu_json.parent)
    EngineConfig.of(**engine)  # what is wrong with it costs no loading of tasks
    manager, tasks = find_tasks(options.tasks, questions.include_path, questions.data_dir)
    if options.mmmu_json and not any(name.startswith(MMMU) for name in options.tasks):
        raise InvalidConfig(f"mmmu_json needs a task of MMMU, such as {MMMU}, got {', '.join(options.tasks)}.")
    return _run(options, questions, engine, manager, tasks)


_SAME_NAMES = ("num_fewshot", "batch_size", "limit", "system_instruction", "apply_chat_template", "gen_kwargs")
"""Options of the tasks that lm_eval's `simple_evaluate` has under the same names."""
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def _run(
    options: EvalOptions, questions: TaskOptions, engine: dict[str, Any], manager: Any, tasks: list[Any]
) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(options.output_path) if options.output_path else None)
    more = {name: value for name, value in engine.items() if name != "model"}
    with closing(_model(engine.get("model", "demo"), more, questions, options.store)) as model:
        results: dict[str, Any] = simple_evaluate(
            model=model,
            model_args={"pretrained": model.name, **more},
            tasks=tasks,
            task_manager=manager,
            log_samples=True,
            evaluation_tracker=tracker,
            predict_only=options.predict_only,
            fewshot_as_multiturn=questions.fewshot_as_multiturn and bool(questions.apply_chat_template),
            **{name: getattr(questions, name) for name in _SAME_NAMES},
            **dict.fromkeys(_SEEDS, questions.seed),
        )
        results["config"]["model"] = "tilewise-vlm"
        _write(options, results, tracker, model.client.answers)
        return results


def _model(name: str, engine: dict[str, Any], questions: TaskOptions, store: Path | None) -> PictureModel:
    from tilewise.evals.models import EVERY_PICTURE, PictureModel

    most = (engine.get("limit_mm_per_prompt") or {}).get("image", EVERY_PICTURE)
    return PictureModel(
        name,
        batch_size=questions.batch_size,
        max_gen_toks=questions.max_gen_toks,
        max_images=most if questions.max_images is None else questions.max_images,
        enable_thinking=questions.enable_thinking,
        resume_dir=store,
        seed=questions.seed,
        **engine,
    )


def _write(
    options: EvalOptions, results: dict[str, Any], tracker: Any, answers: list[tuple[Question, ModelAnswer]]
) -> None:
    if options.output_path:
        without_samples = {name: value for name, value in results.items() if name != "samples"}
        write_run(options.output_path, tracker, without_samples, results["samples"] if options.log_samples else None)
        write_answers(options.output_path, tracker, answers)
    if options.mmmu_json:
        write_text(options.mmmu_json, as_json(mmmu_report(results)))


def score_table(results: Mapping[str, Any]) -> Table:
    """Return a table with a row for each task and metric, groups first."""
    table = Table()
    for title in ("task", "questions", "metric", "value", "± standard error"):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right", overflow="fold")
    groups = results.get("groups") or {}
    for task, row in sorted(results["results"].items(), key=lambda item: item[0] not in groups):
        name = ("" if task in groups or not groups else "- ") + str(row.get("alias", task)).lstrip(" -")
        for metric, value, error in metrics(row):
            table.add_row(name, str(_rows(results, task)), metric, _number(value), _number(error))
    return table


def metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and standard error of metrics; lm_eval's keys are `metric,filter`, `metric_stderr,filter`."""
    for key, value in row.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr"):
            yield name if kind == "none" else f"{name} ({kind})", value, row.get(f"{name}_stderr,{kind}")


def _rows(results: Mapping[str, Any], task: str) -> Any:
    counted = results.get("n-samples", {}).get(task)
    if counted:
        return counted["effective"]
    members = results.get("group_subtasks", {}).get(task, [])
    return sum(_rows(results, member) or 0 for member in members) or ""


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value if value is not None else "")


def mmmu_report(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return right answers, all answers and their share in percent, for each subject of MMMU and altogether."""
    subjects = {
        str(results["configs"][task].get("task_alias") or task): mmmu_counts(samples)
        for task, samples in sorted(results["samples"].items())
        if task.startswith(f"{MMMU}_")
    }
    right, total = (sum(subject[name] for subject in subjects.values()) for name in ("correct", "total"))
    counts = results["config"]["tilewise"]
    return {
        "benchmark": "MMMU_val",
        "model": results["config"]["model_args"]["pretrained"],
        "overall": _line(right, total),
        "subjects": subjects,
        "from_store": counts["from_store"],
        "failed": counts["failed"],
    }


def mmmu_counts(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return _line(sum(int(sample["acc"]) for sample in samples), len(samples))


def _line(right: int, total: int) -> dict[str, Any]:
    return {"accuracy": round(100 * right / total, 2) if total else 0.0, "correct": right, "total": total}
