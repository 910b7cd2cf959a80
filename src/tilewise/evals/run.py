"""Runs one evaluation, and reports its scores.

Folders, options and tasks are checked before a model is loaded: mistakes cost least there. A mistake in a task (its
name, its data, a column) shows on its first row. A picture that cannot be read ends nothing: a blank one, which carries
the reason, takes its place.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin
from rich.table import Table

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig, InvalidMedia, did_you_mean
from tilewise.eval_options import EvalOptions, TaskOptions
from tilewise.evals import TASKS
from tilewise.evals.client import UNREADABLE
from tilewise.evals.question import ModelAnswer, Question
from tilewise.evals.results import as_json, check_writable, write_answers, write_run, write_text
from tilewise.host import require_extra
from tilewise.inputs.media.images import open_image

if TYPE_CHECKING:
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
    with contextlib.closing(_model(engine.get("model", "demo"), more, questions, options.store)) as model:
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


@contextlib.contextmanager
def mended_downloads() -> Iterator[list[str]]:
    """Replace damaged pictures in the data sets of all tasks that are made inside the context.

    Reading one would raise in the middle of lm_eval and end the run. A blank takes its place; the reason stands in the
    PNG itself, where EvalClient finds it and fails that question alone. lm_eval's `download` is wrapped, as a task
    reads its first rows while it is made, right after its download, and leaves no other place in between. The list that
    is yielded holds the names of the columns of the newest data set.
    """
    from lm_eval.api.task import ConfigurableTask

    download, columns = ConfigurableTask.download, list[str]()

    def mended(task: Any, *arguments: Any, **options: Any) -> None:
        download(task, *arguments, **options)
        for split, rows in task.dataset.items():
            if hasattr(rows, "features"):
                columns[:] = rows.features
                task.dataset[split] = _replaced(rows)

    ConfigurableTask.download = mended
    try:
        yield columns
    finally:
        ConfigurableTask.download = download


def _replaced(rows: Any) -> Any:
    import datasets

    columns = [name for name, kind in rows.features.items() if _holds_pictures(kind)]
    if not columns:
        return rows
    stored = rows.select_columns(columns).with_format("arrow")  # as bytes: nothing is decoded yet
    checked = ((place, _damage(stored[place].to_pylist()[0])) for place in range(len(rows)))
    damaged = {place: found for place, found in checked if found}
    if not damaged:
        return rows
    undecoded = rows
    for name in columns:
        undecoded = undecoded.cast_column(name, _undecoded(rows.features[name]))
    mended = undecoded.map(lambda row, place: damaged.get(place, {}), with_indices=True, keep_in_memory=True)
    return mended.cast(datasets.Features(rows.features))


def _holds_pictures(kind: Any) -> bool:
    import datasets

    return isinstance(getattr(kind, "feature", kind), datasets.Image)


def _undecoded(kind: Any) -> Any:
    import datasets

    plain = datasets.Image(decode=False)
    return datasets.List(plain) if hasattr(kind, "feature") else plain


def _damage(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that hold a damaged picture, each with the content that replaces it."""
    mended = {}
    for name, held in row.items():
        pictures = held if isinstance(held, list) else [held]
        checked = [_checked(picture) for picture in pictures]
        if any(new is not old for new, old in zip(checked, pictures, strict=True)):
            mended[name] = checked if isinstance(held, list) else checked[0]
    return mended


def _checked(picture: dict[str, Any] | None) -> dict[str, Any] | None:
    if picture is None:
        return None
    try:
        open_image(picture["bytes"] if picture["bytes"] is not None else str(picture["path"]))
    except InvalidMedia as error:
        return {"bytes": _blank(str(error)), "path": None}
    return picture


def _blank(reason: str) -> bytes:
    content, note = io.BytesIO(), PngImagePlugin.PngInfo()
    note.add_itxt(UNREADABLE, reason)
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=note)
    return content.getvalue()


def find_tasks(names: Sequence[str], include: Path | None, data: Path | None) -> tuple[Any, list[Any]]:
    """Return lm_eval's task manager, and a task or group for each name; a pattern such as `mmmu_val_*` names several.

    `include` is a folder with more tasks. In `data`, data sets lie in folders of their hub names, and need no network.
    Raises InvalidConfig.
    """
    from lm_eval.tasks import TaskManager

    if include is not None and not include.is_dir():
        raise InvalidConfig(f"include_path={include} is not a folder: name one that holds YAML files of tasks.")
    folders = [TASKS, *([include.resolve()] if include else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(not _is_file(name) and not manager.match_tasks([name]) for name in names):
        manager = TaskManager(include_path=folders)  # reads thousands of files
    found: list[Any] = []
    for name in names:
        found += _load(manager, _known(manager, name), data)
    return manager, found


def _known(manager: Any, name: str) -> list[str]:
    if _is_file(name):
        if not Path(name).is_file():
            raise InvalidConfig(f"tasks={name}: no such file.")
        return [str(Path(name).resolve())]
    names: list[str] = manager.match_tasks([name])
    if not names:
        near = did_you_mean(name, manager.all_tasks)
        raise InvalidConfig(f"There is no task {name!r}.{near} All of them: python -m tilewise.evals ls tasks")
    return names


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _load(manager: Any, names: list[str], data: Path | None) -> Iterator[Any]:
    for name in names:
        with mended_downloads() as columns:
            try:
                with contextlib.chdir(data) if data else contextlib.nullcontext():
                    loaded = manager.load([name])
                    for task in loaded["tasks"].values():
                        _make_a_question(task)
            except Exception as error:  # whatever a YAML file, its functions or the data set's loader raise
                raise InvalidConfig(_words(name, error, columns)) from error
        group = loaded["groups"].get(name)
        yield from [group] if group else loaded["tasks"].values()


def _make_a_question(task: Any) -> None:
    first = task.eval_docs[0]
    for part in (task.doc_to_text, task.doc_to_target, task.doc_to_image):
        part(first)


def _words(name: str, error: Exception, columns: list[str]) -> str:
    what = f"Task {name} cannot be loaded ({type(error).__name__}: {str(error).strip():.300})."
    if columns:
        return f"{what} The columns of its data are {', '.join(columns)}."
    return f"{what} Data come from the hub, or from --data-dir; paths in a task's YAML count from where you are."
