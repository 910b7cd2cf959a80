"""Writes docs/cli.md from the verbs of the command line.

`make compatibility` runs this; a test holds the page against the verbs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docs.compatibility import row, section

from tilewise.cli import TILEWISE
from tilewise.cli.flags.flag import NEEDED, Flag, words_of
from tilewise.cli.flags.settings import serve_flags
from tilewise.cli.flags.verb import GROUPS, Verb, VerbGroup

PAGE = Path(__file__).parent / "cli.md"
INTRODUCTION = """\
# The command line

Written by `make compatibility`.

```console
$ tilewise VERB --help            # a verb, its flags or their groups
$ tilewise serve --help=memory    # a group of flags
$ tilewise serve --help=picture   # flags about a word
```

Each verb's own flags are listed here. Those that verbs share, of the engine and of the server, are in
[compatibility.md](compatibility.md#options), with their defaults. A flag may be written with dashes or underscores, and
its value behind a blank or `=`; amounts may be `16K` or `1M`. Errors are one line on standard error. The status is 0
where all went well, 1 where something failed, 2 where the line could not be read.
"""


def page() -> str:
    verbs = [(name, line, TILEWISE.verb(name)) for name, (line, _) in TILEWISE.verbs.items()]
    rows = [(f"[`{name}`](#tilewise-{name})", line) for name, line, _ in verbs]
    parts = [_part(f"tilewise {name}", verb) for name, _, verb in verbs]
    return "\n".join([INTRODUCTION, section("## Verbs", ("verb", "what it is for"), rows), *parts])


def _part(name: str, verb: Verb | VerbGroup) -> str:
    """Return what stands under a verb's heading, with the verbs below it, if there are any."""
    if isinstance(verb, Verb):
        return "\n".join(_about(f"## {name}", verb))
    lines = [f"## {name}\n\n{verb.about}\n"]
    for below, (_, found) in verb.verbs.items():
        lines += _about(f"### {name} {below}", found if isinstance(found, Verb) else _verb(found()))
    return "\n".join(lines)


def _verb(found: Verb | VerbGroup) -> Verb:
    assert isinstance(found, Verb), "groups of verbs have no groups below them"
    return found


def _about(heading: str, verb: Verb) -> Iterator[str]:
    yield f"{heading}\n\n{verb.about}\n\n```text\n{verb.usage}\n```\n"
    words = [field.metadata for options in verb.options for field in words_of(options)]
    if words:
        yield _table(("argument", "what it is"), [(f"`{about['word']}`", about["help"]) for about in words])
    own = [flag for flag in verb.own_flags if flag.group]
    for group, flags in groupby(own, lambda flag: flag.group):
        yield _table((f"flag: {group}", "values", "default", "what it is"), map(_row, flags))
    if shared := _shared(verb):
        yield shared + "\n"
    if verb.examples:
        yield f"```text\n{verb.examples.strip()}\n```\n"


def _shared(verb: Verb) -> str:
    """Say which groups of flags a verb shares with `serve`."""
    own, of_serve = {flag.name for flag in verb.own_flags}, {flag.name for flag in serve_flags()}
    flags = [flag for flag in verb.flags if flag.name not in own and flag.name in of_serve]
    groups = [group for group in GROUPS if any(flag.group == group for flag in flags)]
    if not groups:
        return ""
    return f"Further flags, in the groups of [compatibility.md](compatibility.md#options): {', '.join(groups)}."


def _row(flag: Flag) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in (flag.dashed, flag.other, flag.short) if name)
    return names, _values(flag), _default(flag.default), flag.help


def _values(flag: Flag) -> str:
    if flag.is_switch:
        return "switch"
    if get_origin(flag.type) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(flag.type))
    kind = flag.metavar or ("object" if flag.is_object else {int: "N", float: "X"}.get(flag.type, "text"))
    kind = f"{kind} ..." if flag.is_list else kind
    return kind if flag.bare is NEEDED or flag.is_list else f"[{kind}]"


def _default(value: Any) -> str:
    if value is False or value in ((), "") or not isinstance(value, (bool, int, float, str, tuple, Path)):
        return ""  # where nothing was given, or what stands for that
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join([row(titles), "|---" * len(titles) + "|", *map(row, rows), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
