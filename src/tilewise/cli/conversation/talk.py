"""A conversation, line by line: with a person at a terminal, or from a pipe."""

from __future__ import annotations

import sys
from contextlib import closing

from tilewise.cli.conversation.commands import Quit, run_command
from tilewise.cli.conversation.screen import Screen
from tilewise.cli.conversation.session import Session
from tilewise.errors import TilewiseError


def talk(session: Session, screen: Screen) -> int:
    """Until the person has had enough; mistakes and Ctrl-C end no conversation."""
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
    """All lines of the input; 1 if one of them went wrong."""
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
    """One line: a question or a command."""
    line = line.strip()
    if line.startswith("/"):
        if said := run_command(session, line):
            screen.note(said)
    elif line:
        answer(session, screen, line)


def answer(session: Session, screen: Screen, question: str) -> None:
    with closing(session.ask(question)) as deltas:
        screen.show(deltas)
