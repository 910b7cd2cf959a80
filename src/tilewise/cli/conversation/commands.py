"""Lines that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tilewise.cli.conversation.media import media_part
from tilewise.cli.conversation.session import Session
from tilewise.cli.conversation.stats import stats_lines
from tilewise.errors import InvalidRequest, did_you_mean


class Quit(Exception):
    """The conversation is over."""


@dataclass(frozen=True, slots=True)
class Command:
    argument: str
    about: str
    run: Callable[[Session, str], str]
    """Takes what stands behind the name, and returns what is to be shown."""
    needs_argument: bool = True


def run_command(session: Session, line: str) -> str:
    """Raises InvalidRequest for what is no command, and Quit."""
    name, _, text = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise InvalidRequest(f"There is no command {name}.{did_you_mean(name, COMMANDS)} /help lists them.")
    if command.argument and command.needs_argument and not text.strip():
        raise InvalidRequest(f"{name} needs {command.argument}.")
    return command.run(session, text.strip())


def _image(session: Session, source: str) -> str:
    session.attached.append(media_part("image", source))
    return ""


def _video(session: Session, source: str) -> str:
    session.attached.append(media_part("video", source))
    return ""


def _clear(session: Session, _: str) -> str:
    session.clear()
    return "A new conversation."


def _save(session: Session, name: str) -> str:
    path = Path(name).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(session.body(), file, ensure_ascii=False, indent=1)
    except FileExistsError:
        raise InvalidRequest(f"{path} exists: choose another name.") from None
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}.") from None
    return f"{len(session.messages)} messages are in {path}, as the body of a request."


def _system(session: Session, text: str) -> str:
    session.system = text or None
    return "From the next question on." if text else "There is no system message of yours any more."


def _stats(session: Session, _: str) -> str:
    return "\n".join(stats_lines(session.answers))


def _help(_: Session, __: str) -> str:
    rows = [(f"{name} {command.argument}".rstrip(), command.about) for name, command in COMMANDS.items()]
    rows += [("Ctrl-C", "stop an answer"), ("Ctrl-D", "end the conversation")]
    return "\n".join(f"{name:<18} {about}" for name, about in rows)


def _quit(_: Session, __: str) -> str:
    raise Quit


COMMANDS: dict[str, Command] = {
    "/image": Command("PATH|URL", "attach a picture to the next question; again for another", _image),
    "/video": Command("PATH|URL", "attach a video to the next question", _video),
    "/system": Command("TEXT", "set the system message; without TEXT, take it back", _system, needs_argument=False),
    "/clear": Command("", "begin a new conversation; the system message stays", _clear),
    "/save": Command("FILE", "write the conversation as JSON, ready to be sent again", _save),
    "/stats": Command("", "tokens, tiles and seconds so far", _stats),
    "/help": Command("", "show this", _help),
    "/quit": Command("", "end the conversation", _quit),
}
