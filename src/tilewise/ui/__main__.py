"""`python -m tilewise.ui MODEL HOST:PORT`: the web chat, by the arguments of grps's `llm_app.py`."""

from __future__ import annotations

import sys

from tilewise.ui.app import run
from tilewise.ui.servers import Servers

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tilewise.ui MODEL HOST:PORT")
    run(Servers((f"http://{sys.argv[2]}/v1",), sys.argv[1]), "0.0.0.0", 7860)
