"""A process that has begun before it is known what for."""

from __future__ import annotations

import os
import signal
import time

from tilewise.inputs.media.cut_worker import ForkServer
from tilewise.remote.engine import EngineProcess


def test_one_that_is_never_told_of_a_model_ends_with_the_pipe():
    process = EngineProcess()
    process.pipe.close()
    for _ in range(600):  # it loads libraries first, which `wait` would lose patience with on a busy machine
        if process.exit_status is not None:
            break
        time.sleep(0.1)
    assert process.exit_status == 0


def test_ctrl_c_of_the_terminal_is_left_to_the_first_process():
    """From the first moment on, while it still imports what it needs."""
    process = EngineProcess()
    forker = ForkServer()
    for _ in range(20):
        os.kill(process.pid, signal.SIGINT)
        os.kill(forker.pid, signal.SIGINT)
        time.sleep(0.02)
    assert process.exit_status is None
    assert not forker.has_ended
    process.kill()
    process.pipe.close()
    forker.close()


def test_one_that_is_not_wanted_can_be_killed_at_any_time():
    process = EngineProcess()
    assert process.exit_status is None
    process.kill()
    assert process.exit_status == -signal.SIGKILL
    process.kill()
    process.pipe.close()
