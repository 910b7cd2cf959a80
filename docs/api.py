"""Writes docs/api.md from the tables that request bodies are checked against.

`make compatibility` runs this; a test holds the page against the tables.
"""

from __future__ import annotations

from pathlib import Path

from docs.compatibility import section

from tilewise.server.app import api_routes
from tilewise.server.fields import TABLES, Field, FieldTable

PAGE = Path(__file__).parent / "api.md"
INTRODUCTION = """\
# The HTTP API, field by field

Written by `make compatibility`.

Bodies are OpenAI's, with vLLM's further fields. Every field works, or is refused by name with a 400 that says why, or
is listed as one that can have no effect here. A field that nobody knows is refused with the nearest that exists, so a
misspelt `max_tokns` does not pass. A null counts as absent.
"""
PARTS = """\
## Parts of a message

| part | what it is |
|---|---|
| `{"type": "text", "text": "..."}` | text; `<image>` in it says where a picture stands, else pictures stand first |
| `{"type": "image_url", "image_url": {"url": "..."}}` | a picture: `https:`, `data:`, `file:` in the folder allowed |
| `{"type": "video_url", "video_url": {"url": "..."}}` | the same for videos; frames are taken evenly, one tile each |
| `{"image_url": "..."}` | the short form |
| `{"type": "image_url", "image_url": {"url": "..."}, "uuid": "..."}` | a name for it: later the `uuid` comes alone |
| audio, files, embeddings | refused by name |
"""


def page() -> str:
    routes = section("## Routes", ("route", "methods", "about"), [*_routes()])
    return "\n".join([INTRODUCTION, routes, *map(_table, TABLES.values()), PARTS])


def _routes() -> list[tuple[str, str, str]]:
    found = []
    for route in api_routes():
        methods, about = ", ".join(sorted(route.methods or ())), (route.endpoint.__doc__ or "").strip()
        found.append((f"`{route.path}`", methods, about))
    return found


def _table(table: FieldTable) -> str:
    rows = [(f"`{field.name}`", _effect(field), field.note) for field in table.fields]
    return section(f"## `{table.route}`", ("field", "effect", "about"), rows)


def _effect(field: Field) -> str:
    taken = ", ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in field.harmless)
    return f"{field.effect}, but for {taken}" if taken else field.effect


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
