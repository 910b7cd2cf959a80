"""`tilewise chat`: a conversation with a server, at a terminal or line by line."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from tilewise.cli.conversation import DEFAULT_URL
from tilewise.cli.options import json_object

EXAMPLES = """\
examples:
  tilewise chat
      with `tilewise serve` on this machine; /help lists the commands
  tilewise chat --url http://vision.example:8000/v1 --system "Answer in one sentence."
  tilewise chat -q "Who are you?"
  printf '%s\\n' '/image sign.jpg' 'What does the sign say?' | tilewise chat
      without a terminal, each line is a question or a command
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "chat",
        description="Talk with any OpenAI-compatible server about pictures and videos.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--model", "--model-name", metavar="NAME", help="the server's name of it (default: its first)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="of the server (default: VLLM_API_KEY, which nobody else sees)"
    )
    parser.add_argument("--system", "--system-prompt", metavar="TEXT", help="system message")
    parser.add_argument("-q", "--quick", metavar="MSG", help="ask this, print the answer, and end")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (default: the server's)")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 = always the likeliest token (as above)")
    parser.add_argument(
        "--extra-body",
        type=json_object,
        metavar="JSON",
        default={},
        help='further fields of each request, as {"chat_template_kwargs": {"enable_thinking": true}}',
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    # Not above: an HTTP client takes longer to load than other verbs to run.
    from tilewise.cli.conversation.history import history
    from tilewise.cli.conversation.server import ChatServer
    from tilewise.cli.conversation.session import Session
    from tilewise.cli.conversation.talk import Screen, answer, talk, talk_by_lines
    from tilewise.services.record import state_folder

    with ChatServer(options.url, options.api_key or os.environ.get("VLLM_API_KEY")) as server:
        wanted = {"max_tokens": options.max_tokens, "temperature": options.temperature}
        session = Session(
            server,
            options.model or server.first_model(),
            options.system,
            {**options.extra_body, **{name: value for name, value in wanted.items() if value is not None}},
        )
        screen = Screen(sys.stdout, sys.stdout.isatty() and os.environ.get("TERM") != "dumb")
        if options.quick is not None:
            answer(session, screen, options.quick)
            return 0
        if not sys.stdin.isatty():
            return talk_by_lines(session, screen)
        screen.note(f"{session.model} at {server.url}. /help lists the commands.")
        with history(state_folder(os.environ) / "chat"):
            return talk(session, screen)
