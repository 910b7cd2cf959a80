"""Decoders in a confined process of an ordinary user: they may start threads, and nothing else.

Root is another thing to the kernel: its processes are not counted. So what is tried here is a process that gives up
being root, if it is.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.inputs.pictures import video

PROGRAM = """
import os, pickle, signal, socket, subprocess, sys, threading
from tilewise.inputs.media import cut_worker
from tilewise.inputs.media.images import open_image, to_rgb
from tilewise.inputs.media.video import FrameChoice, read_video
from tilewise.inputs.sandbox import confine_this_process

def tried(action):
    try:
        return action()
    except Exception as error:
        return type(error).__name__

pictures, film = pickle.load(sys.stdin.buffer)
cut_worker.load_decoders()
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
confine_this_process(None, memory=4 * 2**30, files=8, threads=True)
found = {name: tried(lambda: to_rgb(open_image(data)).size) for name, data in pictures.items()}
found["video"] = [tried(lambda: len(read_video(film, FrameChoice(4), threads=1))) for _ in range(12)]
found["threads"] = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1
forbidden = {
    "fork": os.fork,
    "exec": lambda: os.execv(sys.executable, ["python"]),
    "spawn": lambda: subprocess.Popen([sys.executable, "-c", ""]).wait(),
    "connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
    "kill": lambda: os.kill(os.getppid(), 0),
}
found |= {name: tried(action) for name, action in forbidden.items()}
sys.stdout.buffer.write(pickle.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> Any:
    page = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    pictures = {}
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF"):
        page.save(out := io.BytesIO(), kind)
        pictures[kind] = out.getvalue()
    try:
        import pillow_heif

        pillow_heif.from_pillow(page).save(out := io.BytesIO())
        pictures["HEIC"] = out.getvalue()
    except ImportError:
        pass
    given = pickle.dumps((pictures, video(30, 64, "libx264", "mp4")))
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return pictures, pickle.loads(done.stdout)


def test_every_kind_is_decoded(found: Any) -> None:
    pictures, result = found
    assert {name: result[name] for name in pictures} == dict.fromkeys(pictures, (300, 200))
    assert result["video"] == [4] * 12


def test_threads_do_not_pile_up(found: Any) -> None:
    _, result = found
    assert result["threads"] < 20


@pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")
@pytest.mark.parametrize("action", ["fork", "exec", "spawn", "connect", "kill"])
def test_nothing_else_is_possible(found: Any, action: str) -> None:
    _, result = found
    assert result[action] in ("PermissionError", "BlockingIOError", "OSError"), result[action]
