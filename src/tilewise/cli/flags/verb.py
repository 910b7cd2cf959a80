"""A verb: its flags, what runs it, and its help, which is an overview, a group of flags, or a search."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

from tilewise.cli.flags.flag import NEEDED, BadUsage, Flag, flags_of, words_of
from tilewise.cli.flags.parse import CommandLine
from tilewise.errors import did_you_mean

_WIDTH = 110
_IN_FULL = 40
"""Most flags that the help shows without being asked for a group, beside the verb's own."""
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
"""Groups of flags that verbs share, in the order of the help. A verb's own are named by themselves."""
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


@dataclass(frozen=True, kw_only=True)
class Verb:
    usage: str
    about: str
    run: Callable[[CommandLine], int]
    options: tuple[type[Any], ...] = ()
    """Dataclasses whose fields are flags of its own, and arguments that are no flags."""
    shared: Callable[[], Sequence[Flag]] = tuple
    """Returns flags that other verbs have, too. Of several of one name the first counts, and its own before them."""
    names_model: bool = False
    """True if the one argument that is no flag is a model, which is also a flag."""
    examples: str = ""

    @cached_property
    def own_flags(self) -> tuple[Flag, ...]:
        return tuple(flag for options in self.options for flag in flags_of(options))

    @cached_property
    def flags(self) -> tuple[Flag, ...]:
        found: dict[str, Flag] = {}
        for flag in (*self.own_flags, *self.shared()):
            found.setdefault(flag.name, flag)
        return tuple(found.values())

    def call(self, words: Sequence[str]) -> int:
        """Run the verb with the words behind its name, or print its help, and return the exit status."""
        if (topic := asked_for_help(words)) is not None:
            print(self.help(topic))
            return 0
        return self.run(self.read(words))

    def read(self, words: Sequence[str]) -> CommandLine:
        """Read a command line. Raises BadUsage."""
        line = CommandLine.read(words, self.flags)
        if line.positional and not self.names_model and not any(map(words_of, self.options)):
            raise BadUsage(f"unrecognized arguments: {' '.join(line.positional)}")
        return line

    def help(self, topic: str = "") -> str:
        if topic == "listgroup":
            return _overview(self.flags)
        if topic:
            return self._about(topic)
        words = [field.metadata for options in self.options for field in words_of(options)]
        few = len([flag for flag in self.flags if flag.group]) <= _IN_FULL
        rest = [] if few else [flag for flag in self.flags if flag not in self.own_flags]
        sections = (
            f"usage: {self.usage}\n",
            textwrap.fill(self.about, _WIDTH) + "\n",
            *(f"  {about['word']}\n{_text(about['help'])}" for about in words),
            *([""] if words else []),
            *([sections_of(shown)] if (shown := self.flags if few else self.own_flags) else []),
            *([_overview(rest)] if rest else []),
            self.examples,
        )
        return "\n".join(sections)

    def _about(self, topic: str) -> str:
        """Return all flags, those of a group, or those in whose name or help the word occurs."""
        topic = _ours(topic.lower().lstrip("-"))
        shown = [flag for flag in self.flags if flag.group]
        word = topic.replace("-", "_")
        found = [flag for flag in shown if topic in ("all", flag.group)]
        found = found or [flag for flag in shown if word in flag.name or topic in flag.help.lower()]
        if found:
            return sections_of(found)
        return f"No flag is about {topic!r}.{did_you_mean(topic, GROUPS)} The groups: {', '.join(_groups(shown))}."


@dataclass(frozen=True, kw_only=True)
class VerbGroup:
    """A word that further verbs follow."""

    usage: str
    about: str
    title: str
    verbs: Mapping[str, tuple[str, Verb | Callable[[], Verb | VerbGroup]]]
    """Verbs, each with its line in the help; one that is a function is loaded by it when it is wanted."""
    examples: str = ""

    def call(self, words: Sequence[str]) -> int:
        if not words or words[0].startswith("-"):
            print(self.help())
            return 0 if asked_for_help(words) is not None else 2
        return self.verb(words[0]).call(words[1:])

    def verb(self, name: str) -> Verb | VerbGroup:
        """Return the verb of a name. Raises BadUsage with the one that is near."""
        if name not in self.verbs:
            near = did_you_mean(name, self.verbs) or f" There are {', '.join(self.verbs)}."
            raise BadUsage(f"there is no {name!r}.{near}")
        verb = self.verbs[name][1]
        return verb if isinstance(verb, Verb) else verb()

    def help(self) -> str:
        width = max(map(len, self.verbs))
        verbs = [f"  {name:<{width}}  {line}" for name, (line, _) in self.verbs.items()]
        about = [f"usage: {self.usage}\n", textwrap.fill(self.about, _WIDTH), "", f"{self.title}:"]
        return "\n".join([*about, *verbs, "", self.examples])


def asked_for_help(words: Sequence[str]) -> str | None:
    """Return the topic of --help; "" = the overview, None = nobody asked."""
    for word in words:
        if word == "--":
            return None
        if word in ("-h", "--help") or word.startswith("--help="):
            return word.partition("=")[2]
    return None


def _ours(topic: str) -> str:
    """Return the group that has what one of vLLM's groups has (`cacheconfig`, say); vLLM's `page` is every flag."""
    if topic == "page":
        return "all"
    return _OF_VLLM.get(topic.removesuffix("config"), topic) if topic.endswith("config") else topic


def _groups(flags: Sequence[Flag]) -> list[str]:
    """Return the groups of these flags: the verb's own as they come, then those that verbs share."""
    named = dict.fromkeys(flag.group for flag in flags if flag.group)
    return [*(name for name in named if name not in GROUPS), *(name for name in GROUPS if name in named)]


def sections_of(flags: Sequence[Flag]) -> str:
    return "\n".join(_section(name, [flag for flag in flags if flag.group == name]) for name in _groups(flags))


def _overview(flags: Sequence[Flag]) -> str:
    lines = ["flags, in groups:"]
    for name in _groups(flags):
        count = sum(flag.group == name for flag in flags)
        lines.append(f"  {name:<14} {count:>3}  {GROUPS.get(name, '')}".rstrip())
    return "\n".join([*lines, "  --help=GROUP shows a group, --help=all every flag, --help=WORD those about a word\n"])


def _section(group: str, flags: Sequence[Flag]) -> str:
    return "\n".join([f"{group}: {GROUPS.get(group, '')}".rstrip(), *map(_entry, flags), ""])


def _entry(flag: Flag) -> str:
    names = ", ".join(name for name in (flag.short, flag.dashed, flag.other) if name)
    default = "" if flag.default in (None, (), "", MISSING) else f" (default: {_shown(flag.default)})"
    value = _placeholder(flag)
    value = f"[{value}]" if flag.bare is not NEEDED and not flag.is_list else value
    return f"{f'  {names} {value}'.rstrip()}\n{_text(flag.help + default)}"


def _text(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _placeholder(flag: Flag) -> str:
    if flag.metavar:
        return f"{flag.metavar} ..." if flag.is_list else flag.metavar
    if flag.is_switch:
        return ""
    if get_origin(flag.type) is Literal:
        return "{" + ",".join(get_args(flag.type)) + "}"
    if flag.is_list:
        return "TEXT ..."
    return "JSON" if flag.is_object else {int: "N", float: "X"}.get(flag.type, "TEXT")


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns as wide as they have to be: names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
