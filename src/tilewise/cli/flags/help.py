"""The help of a verb with very many flags: an overview, a group, or a search."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, get_args, get_origin

from tilewise.cli.flags.flag import Flag
from tilewise.errors import did_you_mean

_WIDTH = 110
GROUPS = {
    "batch": "input, output, order, what is asked again",
    "planning": "devices, layout, and the request that is planned for",
    "this command": "the file of flags",
    "model": "which model, and in which numbers",
    "memory": "what is kept where, and how much of it",
    "scheduling": "how much is computed at once, and for whom",
    "media": "pictures and videos: how many, how large, from where",
    "service": "the process in the background",
    "deployment": "servers on the nodes of a Ray cluster",
    "address": "where the server listens, and TLS",
    "access": "keys, web pages, routes",
    "limits": "sizes, queues, time, restarts",
    "answers": "names, defaults, tools, reasoning, streams",
    "logging": "logs, load and traces",
    "compatibility": "flags of vLLM that are built in, or refused by name",
}
_OF_VLLM = {
    "model": "model",
    "load": "model",
    "cache": "memory",
    "scheduler": "scheduling",
    "parallel": "compatibility",
    "lora": "compatibility",
    "multimodal": "media",
    "observability": "logging",
}


def asked_for_help(words: Sequence[str]) -> str | None:
    """Return the topic of --help; "" = the overview, None = nobody asked."""
    for word in words:
        if word == "--":
            return None
        if word in ("-h", "--help") or word.startswith("--help="):
            return word.partition("=")[2]
    return None


def help_page(usage: str, about: str, examples: str, flags: Sequence[Flag], topic: str) -> str:
    if not topic:
        return "\n".join((f"usage: {usage}\n", textwrap.fill(about, _WIDTH), "", _overview(flags), examples))
    if topic == "listgroup":
        return _overview(flags)
    found = _about(flags, _ours(topic.lower().lstrip("-")))
    if not found:
        return f"No flag is about {topic!r}.{did_you_mean(topic, GROUPS)} The groups: {', '.join(_groups(flags))}."
    return sections_of(found)


def _ours(topic: str) -> str:
    """Return the group that has what one of vLLM's groups has (`cacheconfig`, say); vLLM's `page` is every flag."""
    if topic == "page":
        return "all"
    return _OF_VLLM.get(topic.removesuffix("config"), topic) if topic.endswith("config") else topic


def sections_of(flags: Sequence[Flag]) -> str:
    """Return a section for each group of these flags, in the order of GROUPS."""
    ordered = sorted(flags, key=lambda flag: list(GROUPS).index(flag.group))
    return "\n".join(_section(group, list(of_it)) for group, of_it in groupby(ordered, key=lambda flag: flag.group))


def _about(flags: Sequence[Flag], topic: str) -> list[Flag]:
    """Return all flags, those of a group, or those in whose name or help the word occurs."""
    of_group = [flag for flag in flags if topic in ("all", flag.group)]
    word = topic.replace("-", "_")
    return of_group or [flag for flag in flags if word in flag.name or topic in flag.help.lower()]


def _groups(flags: Sequence[Flag]) -> list[str]:
    return [name for name in GROUPS if any(flag.group == name for flag in flags)]


def _overview(flags: Sequence[Flag]) -> str:
    lines = ["flags, in groups:"]
    for name in _groups(flags):
        count = sum(flag.group == name for flag in flags)
        lines.append(f"  {name:<14} {count:>3}  {GROUPS[name]}")
    return "\n".join([*lines, "  --help=GROUP shows a group, --help=all every flag, --help=WORD those about a word\n"])


def _section(group: str, flags: Sequence[Flag]) -> str:
    return "\n".join([f"{group}: {GROUPS[group]}", *map(_entry, flags), ""])


def _entry(flag: Flag) -> str:
    names = ", ".join(name for name in (flag.short, flag.dashed) if name)
    head = f"  {names} {_placeholder(flag)}".rstrip()
    default = "" if flag.default in (None, (), "") else f" (default: {_shown(flag.default)})"
    text = textwrap.fill(flag.help + default, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"{head}\n{text}"


def _placeholder(flag: Flag) -> str:
    if flag.is_switch:
        return ""
    if get_origin(flag.type) is Literal:
        return "{" + ",".join(get_args(flag.type)) + "}"
    if flag.is_list:
        return "TEXT ..."
    return "JSON" if flag.is_object else {int: "N", float: "X"}.get(flag.type, "TEXT")


def _shown(default: Any) -> str:
    return " ".join(default) if isinstance(default, tuple) else str(default)
