"""A conversation, line by line, with a person at a terminal or from a pipe. A line with a slash first is a command."""

from __future__ import annotations

import contextlib
import json
import mimetypes
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from tilewise.chat_server import Delta, data_url
from tilewise.cli.chat.session import Session, stats_lines
from tilewise.errors import InvalidMedia, InvalidRequest, TilewiseError, did_you_mean

_DIM, _PLAIN = "\033[2m", "\033[0m"


@dataclass(frozen=True)
class Screen:
    out: TextIO
    styled: bool
    """True for a terminal that knows dim text. Elsewhere reasoning is left out, and only answers are written."""

    def show(self, deltas: Iterable[Delta]) -> None:
        """Write an answer as it comes, reasoning dimmed."""
        dim = shown = False
        try:
            for delta in deltas:
                if delta.reasoning and self.styled:
                    self._write(("" if dim else _DIM) + printable(delta.reasoning))
                    dim = shown = True
                if delta.text:
                    self._write((f"{_PLAIN}\n\n" if dim else "") + printable(delta.text))
                    dim, shown = False, True
        finally:
            self._write((_PLAIN if dim else "") + ("\n" if shown else ""))

    def note(self, text: str) -> None:
        """Write a text that is no answer, dimmed where the terminal can."""
        for line in printable(text).splitlines():
            self._write(f"{_DIM}{line}{_PLAIN}\n" if self.styled else f"{line}\n")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def printable(text: str) -> str:
    r"""Return the text without control characters, by which an answer could do things to a terminal.

    >>> printable("a\x1b]0;title\x07\tb\n")
    'a]0;title\tb\n'
    """
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


_SCHEMES = ("http://", "https://", "file://", "data:")


def media_part(kind: Literal["image", "video"], source: str) -> dict[str, Any]:
    """Return a file or URL as a content part of a message, files as their data.

    Raises InvalidMedia for a file that cannot be read, or is something else by its name.
    """
    source = source.strip().strip("\"'")
    url = source if source.startswith(_SCHEMES) else _data_url(kind, Path(source).expanduser())
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _data_url(kind: str, path: Path) -> str:
    guessed = mimetypes.guess_type(path, strict=False)[0] or "a file of unknown kind"
    if not guessed.startswith(f"{kind}/") and guessed != "image/gif":  # which is a picture, or a film
        raise InvalidMedia(f"{path} is {guessed} by its name, no {kind}.")
    try:
        return data_url(guessed, path.read_bytes())
    except OSError as error:
        raise InvalidMedia(f"{path}: {error.strerror}.") from None


class Quit(Exception):
    """The conversation is over."""


@dataclass(frozen=True, slots=True)
class Command:
    argument: str
    about: str
    run: Callable[[Session, str], str]
    """A function that takes the session and the text behind the command's name, and returns a text to be shown."""
    needs_argument: bool = True


def run_command(session: Session, line: str) -> str:
    """Run a command, and return the text to be shown. Raises InvalidRequest for an unknown command, and Quit."""
    name, _, text = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise InvalidRequest(f"There is no command {name}.{did_you_mean(name, COMMANDS)} /help lists them.")
    if command.argument and command.needs_argument and not text.strip():
        raise InvalidRequest(f"{name} needs {command.argument}.")
    return command.run(session, text.strip())


def _attach(kind: Literal["image", "video"], session: Session, source: str) -> str:
    session.attached.append(media_part(kind, source))
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
    "/image": Command(
        "PATH|URL", "attach a picture to the next question; again for another", partial(_attach, "image")
    ),
    "/video": Command("PATH|URL", "attach a video to the next question", partial(_attach, "video")),
    "/system": Command("TEXT", "set the system message; without TEXT, take it back", _system, needs_argument=False),
    "/clear": Command("", "begin a new conversation; the system message stays", _clear),
    "/save": Command("FILE", "write the conversation as JSON, ready to be sent again", _save),
    "/stats": Command("", "tokens, tiles and seconds so far", _stats),
    "/help": Command("", "show this", _help),
    "/quit": Command("", "end the conversation", _quit),
}


def talk(session: Session, screen: Screen) -> int:
    """Talk until the person ends the conversation, and return the exit code. Mistakes and Ctrl-C do not end it."""
    while True:
        try:
            line = input(f"[{len(session.attached)} attached] > " if session.attached else "> ")
            take(session, screen, line)
        except TilewiseError as error:
            screen.note(f"tilewise: {error}")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return 0
        except Quit:
            return 0


def talk_by_lines(session: Session, screen: Screen) -> int:
    """Take all lines of standard input, and return the exit code: 1 if one of them went wrong."""
    code = 0
    for line in sys.stdin:
        try:
            take(session, screen, line)
        except TilewiseError as error:
            print(f"tilewise: {error}", file=sys.stderr)
            code = 1
        except Quit:
            break
    return code


def take(session: Session, screen: Screen, line: str) -> None:
    """Answer one line, which is a question or a command."""
    line = line.strip()
    if line.startswith("/"):
        if said := run_command(session, line):
            screen.note(said)
    elif line:
        answer(session, screen, line)


def answer(session: Session, screen: Screen, question: str) -> None:
    with closing(session.ask(question)) as deltas:
        screen.show(deltas)


_LINES = 1000


@contextmanager
def history(folder: Path) -> Iterator[None]:
    """Let `input` edit lines and go back to those of earlier conversations, where Python has readline.

    They are kept in a file that nobody else may read.
    """
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    file = _private_file(folder)
    readline.set_auto_history(True)
    readline.set_history_length(_LINES)
    with contextlib.suppress(OSError):  # some forms of readline (libedit) refuse an empty file
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.write_history_file(file)
        file.chmod(0o600)


def _private_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    file = folder / "history"
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
    return file
