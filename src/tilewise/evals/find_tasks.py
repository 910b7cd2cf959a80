"""Finds tasks by name, and tries each on its first row before a model is loaded.

A mistake in a task (its name, its data, a column) shows on its first row, and ends a run before anything is computed. A
picture that cannot be read ends nothing: a blank one, which carries the reason, takes its place.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from tilewise.errors import InvalidConfig, InvalidMedia, did_you_mean
from tilewise.evals import TASKS
from tilewise.evals.client import UNREADABLE
from tilewise.inputs.media.images import open_image


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
