"""Tasks by name, loaded and tried before a model is.

What is wrong with a task (its name, its data, a column) shows on its first row, and ends a run before anything was
computed. What is wrong with one picture does not: a blank stands in for it, with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidConfig, did_you_mean
from tilewise.evals import TASKS
from tilewise.evals.harness.damage import mended_downloads


def find_tasks(names: Sequence[str], include: Path | None, data: Path | None) -> tuple[Any, list[Any]]:
    """lm_eval's task manager, and a task or group for each name; patterns such as `mmmu_val_*` name several.

    Below `data`, data sets lie in folders of their hub names, and need no network. Raises InvalidConfig.
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
