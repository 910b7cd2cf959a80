"""The documents: pages that are written by programs are current, links and anchors resolve, and the site builds.

The site itself is built where mkdocs is installed, by `make docs`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from docs import cli, tiles

from tests.served import ROOT
from tilewise.cli import TILEWISE

PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"#{1,6} +(.+?) *$")
LOADED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
ELSEWHERE = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//")


def prose(page: Path) -> Iterator[str]:
    """Yield the lines of a page that are no code."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield line


def slug(heading: str) -> str:
    """Name a heading as GitHub does.

    >>> slug("Taking rows: `--enable-mm-embeds`")
    'taking-rows---enable-mm-embeds'
    """
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    found: Counter[str] = Counter()
    names = set()
    for line in prose(page):
        if heading := HEADING.match(line):
            name = slug(heading[1])
            names.add(f"{name}-{found[name]}" if found[name] else name)
            found[name] += 1
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_resolve(page: Path) -> None:
    for line in prose(page):
        for link in LINK.finditer(line):
            target = (page.parent / link[1]).resolve() if link[1] else page
            assert target.exists(), f"{link[0]} is nowhere"
            assert not link[2] or link[2] in anchors(target), f"{target.name} has no heading #{link[2]}"


def test_the_page_of_the_command_line_is_current() -> None:
    assert cli.PAGE.read_text(encoding="utf-8") == cli.page(), "run make compatibility"


def test_the_page_of_the_command_line_has_every_verb() -> None:
    assert {f"tilewise-{name}" for name in TILEWISE.verbs} <= anchors(cli.PAGE)


def test_the_drawing_of_tiles_is_current() -> None:
    assert tiles.PAGE.read_text(encoding="utf-8") == tiles.drawing(), "run make compatibility"


class Resources(HTMLParser):
    """A reader of a page, which notes what the page loads and its styles."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.styles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in LOADED and (url := found.get(LOADED[tag])):
            self.loaded.append(url)
        self.styles.append(found.get("style") or "")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.styles.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@pytest.mark.docs
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        found = Resources()
        found.feed(page.read_text(encoding="utf-8"))
        assert found.loaded
        assert not [url for url in found.loaded if re.match(r"[a-z]+:|//", url) and not url.startswith("data:")], page
        assert not [text for text in found.styles if ELSEWHERE.search(text)], page
        assert "mermaid" not in page.read_text(encoding="utf-8"), "the theme would load it from elsewhere"
    for sheet in site.rglob("*.css"):
        assert not ELSEWHERE.search(sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.docs
def test_what_pages_load_is_there(site: Path) -> None:
    for page in set(site.rglob("*.html")) - {site / "404.html"}:
        found = Resources()
        found.feed(page.read_text(encoding="utf-8"))
        for url in found.loaded:
            assert url.startswith("data:") or (page.parent / url.partition("?")[0]).exists(), f"{page}: {url}"


@pytest.mark.docs
def test_lists_and_tables_are_shown_as_such(site: Path) -> None:
    for page in site.rglob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"^(- |\* |\d+\. |\||```)", paragraph, re.MULTILINE), f"{page.name}: {paragraph}"


@pytest.mark.docs
def test_the_search_knows_both_languages(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    titles = {entry["title"] for entry in entries}
    assert {"Tiles and tokens", "第一次回答"} <= titles


@pytest.mark.docs
def test_there_is_light_and_dark(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert 'data-md-color-scheme="slate"' in text
