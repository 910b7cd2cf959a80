"""Pictures of a data set that cannot be read, found before lm_eval meets them.

Reading a damaged one would raise in the middle of lm_eval and end the run. A blank takes its place; why stands in the
PNG itself, where the Asker finds it and answers nothing.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from PIL import Image, PngImagePlugin

from tilewise.errors import InvalidMedia
from tilewise.evals.asker import UNREADABLE
from tilewise.inputs.images import open_image


@contextlib.contextmanager
def mended_downloads() -> Iterator[list[str]]:
    """While this lasts, tasks that are made have data sets without damage; the list holds the columns of the newest.

    A task reads its first rows while it is made, right behind its download, and leaves no other place in between.
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
    """The columns that have to be replaced, with what they hold then."""
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
