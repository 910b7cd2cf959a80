"""Reads a command line as vLLM's parser does, and files of flags in YAML.

Underscores are dashes, a beginning of a name that only one flag has will do, --no-FLAG switches off and FLAG false does
too, the last of several wins, and a key of an object may be given by itself: --compilation-config.cudagraph_mode FULL,
--compilation-config.cudagraph_capture_sizes+ 8.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tilewise.cli.flags.flag import (
    NEEDED,
    BadUsage,
    Flag,
    dashes,
    value_from_file,
    value_of,
    values_of_list,
    with_key,
    words_of,
)
from tilewise.errors import InvalidConfig, did_you_mean, nearest
from tilewise.option import loose

_NUMBER = re.compile(r"-(\d+(\.\d*)?|\.\d+)[kKmMgGtT]?")  # -1 is a value and no flag
Options = TypeVar("Options")
_LEVEL = re.compile(r"(-O)(\d)")  # -O3 is -O with the value 3

_OF_OTHER_ENGINES = {
    **dict.fromkeys(("--model-path", "-m"), "--model"),
    **dict.fromkeys(("--session-len", "--ctx-size", "--context-length", "--max-len", "-c"), "--max-model-len"),
    **dict.fromkeys(("--max-batch-size", "--max-running-requests", "--parallel", "-np"), "--max-num-seqs"),
    **dict.fromkeys(("--mem-fraction-static", "--cache-max-entry-count"), "--gpu-memory-utilization"),
    **dict.fromkeys(("--tp-size", "--tp"), "--tensor-parallel-size"),
    **dict.fromkeys(("--chunked-prefill-size", "--max-prefill-token-num", "--batch-size"), "--max-num-batched-tokens"),
    **dict.fromkeys(("--server-name", "--ip"), "--host"),
    **dict.fromkeys(("--server-port",), "--port"),
    **dict.fromkeys(("--api-keys",), "--api-key"),
    **dict.fromkeys(("--n-gpu-layers", "-ngl"), "--device"),
    **dict.fromkeys(("--model-format",), "--quantization"),
    **dict.fromkeys(("--model-name", "--alias"), "--served-model-name"),
    **dict.fromkeys(("--adapters", "--lora-paths", "--lora"), "--adapter"),
    **dict.fromkeys(("--random-seed",), "--seed"),
    **dict.fromkeys(("--quant-policy", "--cache-type-k", "--cache-type-v", "-ctk", "-ctv"), "--kv-cache-dtype"),
}
"""Flags of SGLang, LMDeploy and llama.cpp -> the flag that says the same here; errors suggest it."""


@dataclass(frozen=True)
class FlagIndex:
    """An index of flags: each name by which one may be called -> the flag, and whether that name switches it off."""

    names: dict[str, tuple[Flag, bool]]

    @classmethod
    def of(cls, flags: Iterable[Flag]) -> FlagIndex:
        return cls({name: (flag, off) for flag in flags for name, off in _spellings(flag)})

    def find(self, name: str) -> tuple[Flag, bool]:
        """Return the flag that a name means, and whether it switches it off. A beginning that one flag has will do.

        Raises BadUsage with the names that are near.
        """
        if name in self.names:
            return self.names[name]
        # Short names and aliases are not completed: --device is not --device-memory-utilization.
        whole = (
            known for known, (flag, _) in self.names.items() if flag.group and known not in (flag.short, flag.other)
        )
        begun = [known for known in whole if len(name) > 3 and known.startswith(name)]
        found = {(flag.name, off): (flag, off) for flag, off in map(self.names.__getitem__, begun)}
        if len(found) > 1:
            raise BadUsage(f"{name} may be {' or '.join(sorted(begun))}: write more of it.")
        for only in found.values():
            return only
        raise UnknownFlag(f"There is no flag {name}.{self._hint(name)}")

    def _hint(self, name: str) -> str:
        """Return a sentence with the flag that may be meant. Dashes and `no-`, which many share, make none alike."""
        useful = [known for known, (flag, _) in self.names.items() if flag.group]
        if (meant := _OF_OTHER_ENGINES.get(name)) in useful:
            return f" Did you mean {meant}?"
        off = name.startswith("--no-")
        bare = {known.lstrip("-"): known for known in useful if off or not known.startswith("--no-")}
        near = nearest(name.lstrip("-"), bare, cutoff=0.7)
        return f" Did you mean {bare[near]}?" if near else ""


def _spellings(flag: Flag) -> Iterator[tuple[str, bool]]:
    yield flag.dashed, False
    if flag.is_switch:
        yield "--no-" + flag.dashed.removeprefix("--"), True
    if flag.other:
        yield flag.other, False
    if flag.short:
        yield flag.short, False


class UnknownFlag(BadUsage):
    """A flag that there is not."""


@dataclass
class CommandLine:
    """A command line as far as it has been read: values by the names of flags, and words that are no flags."""

    named: FlagIndex
    values: dict[str, Any] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    _left: deque[str] = field(default_factory=deque)

    @classmethod
    def read(cls, words: Sequence[str], flags: Iterable[Flag]) -> CommandLine:
        """Read a whole line. Raises BadUsage for whatever vLLM's parser would exit at, with all flags that are none."""
        line = cls(FlagIndex.of(flags), _left=deque(words))
        unknown: list[str] = []
        while line._left:
            word = line._left.popleft()
            if word == "--":
                line.positional += line._left
                break
            if not looks_like_flag(word):
                line.positional.append(word)
                continue
            try:
                line._flag(word)
            except UnknownFlag as error:  # what follows is its value, as likely as not
                unknown.append(str(error))
        if unknown:
            raise BadUsage("\n".join(unknown))
        return line

    def take(self, options: type[Options]) -> Options:
        """Take the values of the options of a dataclass out of the line, and return one with them.

        Raises BadUsage for what is missing.
        """
        fields = dataclasses.fields(options)  # type: ignore[arg-type]
        given = {field.name: self.values.pop(field.name) for field in fields if field.name in self.values}
        given |= self._take_words(words_of(options))
        needed = [field for field in fields if field.default is MISSING and field.name not in given]
        if needed:
            names = ", ".join(field.metadata.get("word") or dashes(field.name) for field in needed)
            raise BadUsage(f"the following arguments are required: {names}")
        return options(**given)

    def _take_words(self, fields: Sequence[dataclasses.Field[Any]]) -> dict[str, Any]:
        """Give each argument its word; one that takes several gets those that the others behind it leave."""
        found: dict[str, Any] = {}
        left = deque(self.positional if fields else ())
        for number, argument in enumerate(fields, 1):
            if isinstance(argument.default, tuple):
                count = max(0, len(left) - len(fields[number:]))
                found[argument.name] = tuple(left.popleft() for _ in range(count))
            elif left:
                found[argument.name] = left.popleft()
        if left:
            raise BadUsage(f"unrecognized arguments: {' '.join(left)}")
        return found

    def _flag(self, word: str) -> None:
        word = _LEVEL.sub(r"\1=\2", word) if _LEVEL.fullmatch(word) else word
        name, equals, text = word.partition("=")
        name, dot, path = name.partition(".")
        flag, negated = self.named.find(name.replace("_", "-"))
        given = [text] if equals else None
        try:
            if dot:
                self._key(flag, path, self._one(flag, given))
            else:
                self.values[flag.name] = self._value(flag, given, negated)
        except BadUsage:
            raise
        except ValueError as error:
            raise BadUsage(f"{flag.dashed} {error}") from None

    def _value(self, flag: Flag, given: list[str] | None, negated: bool) -> Any:
        if flag.bare is not NEEDED and given is None and self._next_is_flag():
            return flag.bare
        if flag.is_switch:
            return self._switched(flag, given) is not negated
        if flag.is_list:
            return values_of_list(flag, given or self._several(flag))
        value = value_of(flag, self._one(flag, given))
        return (*self.values.get(flag.name, ()), value) if flag.repeated else value

    def _switched(self, flag: Flag, given: list[str] | None) -> bool:
        if given is None and self._left and self._left[0].lower() in ("true", "false"):
            given = [self._left.popleft()]
        return given is None or value_of(flag, given[0]) is not False

    def _one(self, flag: Flag, given: list[str] | None) -> str:
        if given is not None:
            return given[0]
        if self._next_is_flag():
            raise BadUsage(f"{flag.dashed} needs a value.")
        return self._left.popleft()

    def _next_is_flag(self) -> bool:
        """Return whether the next word is a flag; True also if there is no next word."""
        return not self._left or looks_like_flag(self._left[0])

    def _several(self, flag: Flag) -> list[str]:
        words = [self._one(flag, None)]
        while self._left and not looks_like_flag(self._left[0]):
            words.append(self._left.popleft())
        return words

    def _key(self, flag: Flag, path: str, text: str) -> None:
        """Set one key of an object, or, with a + behind the path, add to the list that the key holds."""
        read = [loose(item) for item in text.split(",")] if path.endswith("+") else loose(text)
        self.values[flag.name] = with_key(flag, self.values.get(flag.name), path, read)


def looks_like_flag(word: str) -> bool:
    """Return whether a word is a flag. A number is none, and neither is a text that happens to begin with a dash."""
    return word.startswith("-") and len(word) > 1 and not (" " in word.partition("=")[0] or _NUMBER.fullmatch(word))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; an empty file is an empty one. Raises InvalidConfig for any other."""
    import yaml

    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), _once_each())
    except FileNotFoundError:
        raise InvalidConfig(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise InvalidConfig(f"{path} is a folder: name the YAML file in it.") from None
    except PermissionError:
        raise InvalidConfig(f"{path} may not be read by this user: change its permissions.") from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"{path} is not UTF-8 text: save it as UTF-8.") from None
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise InvalidConfig(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidConfig(f"{path} must map names of flags to values, got a {type(found).__name__}.")
    return {str(key): value for key, value in found.items()}


def _once_each() -> Any:
    """Return a kind of YAML loader that refuses a key which stands in a mapping twice, where YAML takes the last."""
    import yaml

    class OnceEach(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set[str]()
            for key, _ in node.value:
                if str(key.value) in seen:
                    says = f"the key {key.value!r} stands there twice: leave one of them out"
                    raise yaml.constructor.ConstructorError(None, None, says, key.start_mark)
                seen.add(str(key.value))
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    return OnceEach


def values_of(entries: dict[str, Any], flags: Iterable[Flag], where: str) -> dict[str, Any]:
    """Return the entries of a file as values by the flags' names; `where` names the file in errors.

    Entries are named as on the command line: with dashes or underscores, by short names, and no-FLAG for a switch.
    `a.b: 1` sets a key of an object. Raises InvalidConfig.
    """
    index = FlagIndex.of(flag for flag in flags if flag.name != "config").names
    named = {name.lstrip("-").replace("-", "_"): flag for name, flag in index.items()}
    values: dict[str, Any] = {}
    for key, value in entries.items():
        name, _, path = key.partition(".")
        name = name.lstrip("-").replace("-", "_")
        name = "model" if name == "model_tag" else name
        if name not in named:
            raise InvalidConfig(f"{where}: there is no flag {key!r}.{did_you_mean(name, named)}")
        flag, off = named[name]
        try:
            if path:
                values[flag.name] = with_key(flag, values.get(flag.name), path, value)
            else:
                read = value_from_file(flag, value)
                values[flag.name] = not read if off and read is not None else read
        except ValueError as error:
            said = f"{where}: {key} {error}"
            raise InvalidConfig(said if said.endswith((".", "?")) else f"{said}.") from None
    return values
