"""`tilewise ui`: the web chat, over servers that run, or with one of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tilewise.cli.flags.flag import BadUsage, dashes
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import serve_flags
from tilewise.cli.flags.verb import Verb
from tilewise.cli.serve import serve
from tilewise.option import option


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    GROUP: ClassVar = "page"
    server: tuple[str, ...] = option(
        (),
        "an OpenAI-compatible server that runs; may be repeated, to choose and to compare",
        repeated=True,
        metavar="URL",
    )
    host: str | None = option(None, "address to listen on (default: 127.0.0.1 with --server; of `serve` without)")
    port: int | None = option(None, "port to listen on (default: 7860 with --server; of `serve` without)")


def show(line: CommandLine) -> int:
    options = line.take(PageOptions)
    if not options.server:
        own = {"host": options.host, "port": options.port, "ui": True}
        line.values |= {name: value for name, value in own.items() if value is not None}
        return serve(line)
    others = [name for name in line.values if name not in ("server", "host", "port")]
    if line.positional or others:
        given = ", ".join([*line.positional, *map(dashes, others)])
        raise BadUsage(f"{given}: for a server of its own, and --server asks one that runs. Leave one of them out.")
    from tilewise.ui import app
    from tilewise.ui.servers import Servers

    app.run(Servers(options.server), options.host or "127.0.0.1", 7860 if options.port is None else options.port)
    return 0


UI = Verb(
    usage="tilewise ui [MODEL] [FLAG ...] | tilewise ui --server URL ...",
    about="Talk with a model in the browser, and see the tiles that it sees and the boxes that it names. Serves the "
    "model, as `tilewise serve --ui` does and with its flags, or asks a server that runs.",
    run=show,
    options=(PageOptions,),
    shared=serve_flags,
    names_model=True,
    examples="""\
examples:
  tilewise ui OpenGVLab/InternVL3-1B
      a server, with the chat at http://127.0.0.1:8000/ui
  tilewise ui --server http://gpu-box:9997/v1
      the chat alone, at http://127.0.0.1:7860, over a server that runs
  tilewise ui --server http://a:9997/v1 --server http://b:8000/v1
      two servers to choose from, and to compare
""",
)
