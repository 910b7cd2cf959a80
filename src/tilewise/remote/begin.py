"""The entry point of the engine's process: heavy libraries are loaded while nobody knows yet which model is wanted.

Only the standard library is imported at the top, so that the process starts at once.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
import threading


def main(descriptor: int, log_level: str, number: str, tiles: int) -> None:
    """Run engine `number` over a socket, as its first message says. The exit status is that of `process.main`.

    `tiles` is the descriptor of the file of tiles that it may share with the process that cuts pictures.
    """
    gc.disable()  # until the model is loaded: hardly anything is garbage before, and looking for it takes long
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: the other one decides
    threading.Thread(target=_load_libraries, name="tilewise-libraries", daemon=True).start()
    from tilewise.remote.process import main as run

    run(socket.socket(fileno=descriptor), log_level, number, tiles)


def _load_libraries() -> None:
    """Import torch, which takes longer than all the rest; a later import of it waits for this one."""
    import tilewise.runner.build  # noqa: F401


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
