"""`--config FILE`: flags in YAML, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tilewise.cli.flags.flag import Flag
from tilewise.cli.flags.read import value_from_file, with_key
from tilewise.errors import InvalidConfig, did_you_mean


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a file is. Raises InvalidConfig for any other file."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
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


def flags_of_file(path: str | Path, flags: Iterable[Flag]) -> dict[str, Any]:
    """Values by the flags' names. Raises InvalidConfig for a name or a value that no flag has."""
    return values_of(read_yaml(path), flags, str(path))


def values_of(entries: dict[str, Any], flags: Iterable[Flag], where: str) -> dict[str, Any]:
    """Names are those of the command line: dashes or underscores, short names, and no-FLAG for a switch.

    `a.b: 1` sets a key of an object.
    """
    named = {name: (flag, off) for flag in flags if flag.name != "config" for name, off in _names(flag)}
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
            raise InvalidConfig(f"{where}: {key} {error}.") from None
    return values


def _names(flag: Flag) -> Iterator[tuple[str, bool]]:
    for name in (flag.name, flag.alias, flag.short):
        if name:
            yield name.lstrip("-"), False
    if flag.is_switch:
        yield f"no_{flag.name}", True
