"""`tilewise ui`: the web chat, over a server that runs, or with one of its own."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = """\
examples:
  tilewise ui OpenGVLab/InternVL3-1B                     a server with the chat at /ui; flags of `serve` may follow
  tilewise ui --server http://gpu-box:9997/v1            the chat alone, over a server that runs
  tilewise ui --server http://a:9997/v1 --server http://b:8000/v1        two servers to choose from, and to compare
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "ui",
        usage="tilewise ui (--server URL [--server URL ...] | MODEL [FLAG ...])",
        description="Talk with a model in the browser, and see the tiles that it sees and the boxes that it names.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--server", action="append", default=[], metavar="URL", help="an OpenAI-compatible server; may be given again"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on (default: 7860)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.errors import InvalidConfig
    from tilewise.ui import app
    from tilewise.ui.servers import Servers

    if not options.server:
        raise InvalidConfig("Give a server that runs, --server URL, or a MODEL to serve: tilewise ui MODEL.")
    app.run(Servers(tuple(options.server)), options.host, options.port)
    return 0
