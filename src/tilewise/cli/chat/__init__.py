"""`tilewise chat`: a conversation with a server, at a terminal or line by line. It knows nothing of the engine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.verb import Verb
from tilewise.environment import Environment
from tilewise.host import DEFAULT_URL
from tilewise.option import option


@dataclass(frozen=True, kw_only=True)
class ConversationOptions:
    GROUP: ClassVar = "conversation"
    url: str = option(DEFAULT_URL, "of the server", "server")
    model: str | None = option(
        None, "the server's name of it (default: its first)", "server", alias="model_name", metavar="NAME"
    )
    api_key: str | None = option(
        None, "of the server (default: VLLM_API_KEY, which nobody else sees)", "server", metavar="KEY", shown=False
    )
    system: str | None = option(None, "system message", alias="system_prompt")
    quick: str | None = option(None, "ask this, print the answer, and end", short="-q", metavar="MSG")
    max_tokens: int | None = option(None, "longest answer (default: the server's)")
    temperature: float | None = option(None, "0 = always the likeliest token (as above)")
    extra_body: dict[str, Any] | None = option(
        None, 'further fields of each request, as {"chat_template_kwargs": {"enable_thinking": true}}'
    )

    @property
    def body(self) -> dict[str, Any]:
        """Fields of each request."""
        wanted = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return (self.extra_body or {}) | {name: value for name, value in wanted.items() if value is not None}


def run(line: CommandLine) -> int:
    # Not above: an HTTP client takes longer to load than other verbs to run.
    from tilewise.chat_server import ChatServer
    from tilewise.cli.chat.session import Session
    from tilewise.cli.chat.talk import Screen, answer, history, talk, talk_by_lines

    options, environment = line.take(ConversationOptions), Environment.here()
    with ChatServer(options.url, options.api_key or environment.api_key) as server:
        session = Session(server, options.model or server.first_model(), options.system, options.body)
        screen = Screen(sys.stdout, sys.stdout.isatty() and environment.terminal != "dumb")
        if options.quick is not None:
            answer(session, screen, options.quick)
            return 0
        if not sys.stdin.isatty():
            return talk_by_lines(session, screen)
        screen.note(f"{session.model} at {server.url}. /help lists the commands.")
        with history(environment.state_folder / "chat"):
            return talk(session, screen)


CHAT = Verb(
    usage="tilewise chat [OPTION ...]",
    about="Talk with any OpenAI-compatible server about pictures and videos.",
    run=run,
    options=(ConversationOptions,),
    examples="""\
examples:
  tilewise chat
      with `tilewise serve` on this machine; /help lists the commands
  tilewise chat --url http://vision.example:8000/v1 --system "Answer in one sentence."
  tilewise chat -q "Who are you?"
  printf '%s\\n' '/image sign.jpg' 'What does the sign say?' | tilewise chat
      without a terminal, each line is a question or a command
""",
)
