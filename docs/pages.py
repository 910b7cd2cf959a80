"""A hook of mkdocs: the pages of docs/ are written for readers of the repository, and become a site unchanged.

Files outside of docs/ that a page links to come along under repository/; index.md stands for README.md. A link to a
folder becomes its text, since a site shows none. Lists and tables that follow a text without an empty line, as GitHub
reads them, get that line.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"\s*(```|~~~)")
ITEM = re.compile(r"([-*]|\d+\.) ")
FIRST = {"README.md": "index.md"}
"""Files of the repository that another page stands for."""


def on_files(files: Files, config: Any) -> Files:
    todo = [*FIRST, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(todo)
    while todo:
        path = todo.pop()
        for target in _linked(path):
            if target not in seen and target not in FIRST and (ROOT / target).is_file():
                seen.add(target)
                if not target.startswith("docs/"):
                    source = str(ROOT / target)
                    files.append(File.generated(config, f"repository/{target}", abs_src_path=source))
                    todo += [target] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    uri = page.file.src_uri
    path = uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"

    def moved(found: re.Match[str]) -> str:
        text, link, anchor = found[1], found[2], found[3] or ""
        target = _resolved(path, link)
        target = FIRST.get(target) or _uri(target)
        if files.get_file_from_path(target) is None:
            return found[0] if (ROOT / _resolved(path, link)).is_file() else text
        return f"[{text}]({posixpath.relpath(target, posixpath.dirname(uri))}{anchor})"

    return "\n".join(LINK.sub(moved, line) if prose else line for line, prose in _lines(markdown))


def _linked(path: str) -> Iterator[str]:
    for line, prose in _lines((ROOT / path).read_text(encoding="utf-8")):
        if prose:
            yield from (_resolved(path, found[2]) for found in LINK.finditer(line))


def _resolved(path: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _uri(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"repository/{target}"


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield lines, and whether each is prose and not code; an empty one comes before a list or table that has none."""
    fenced, before = False, ""
    for line in markdown.split("\n"):
        fence = FENCE.match(line) is not None
        if not fenced and not fence and before.strip() and _begins(line, before):
            yield "", False
        yield line, not fenced and not fence
        fenced = fenced != fence
        before = line


def _begins(line: str, before: str) -> bool:
    """Return whether a list or a table begins at this line, directly behind a line of text."""
    if line.startswith("|"):
        return not before.startswith("|")
    return ITEM.match(line) is not None and ITEM.match(before) is None and not before.startswith((" ", "#"))
