"""`tilewise chat` as a person uses it: at a terminal, and through pipes, with a real server."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.served import PICTURES, ROOT

_ESCAPES = re.compile(rb"\x1b\[[?0-9;]*[a-zA-Z]")
_PATIENCE = 60.0  # seconds, of a busy machine
# A terminal sends Ctrl-C to whom it controls, even where whoever started the tests ignores it.
_AT_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "tilewise", "chat", *words]


def environment(home: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("VLLM_API_KEY", "INPUTRC")}
    return {**clean, "PYTHONPATH": str(ROOT / "src"), "TILEWISE_HOME": str(home), "TERM": "xterm"}


def piped(home: Path, *words: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=ROOT, env=environment(home), input=lines, capture_output=True, text=True, check=False
    )


class Terminal:
    """A person at a terminal: types, and reads until something stands there."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> str:
        """What was written up to and with `text`, without what styles it."""
        assert self._shows(text, _PATIENCE), f"{text!r} never came after {self._plain!r}"
        before, found, self._seen = self._plain.partition(text.encode())
        return (before + found).decode()

    def interrupt_until(self, text: str) -> str:
        """Ctrl-C, and again after a while: Python's readline sleeps over one that comes between two of its reads."""
        self.type("\x03")
        if not self._shows(text, _PATIENCE / 6):
            self.type("\x03")
        return self.until(text)

    @property
    def _plain(self) -> bytes:
        return _ESCAPES.sub(b"", self._seen)

    def _shows(self, text: str, seconds: float) -> bool:
        """Reads until `text` is there or the time is over."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self._plain:
            if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            self._seen += os.read(self._master, 4096)
        return True


@contextmanager
def at_terminal(home: Path, *words: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x32\x00\xf0\x00\x00\x00\x00\x00")  # 50 rows of 240 columns
    starter = [sys.executable, "-c", _AT_TERMINAL, *command(*words)]
    process = subprocess.Popen(
        starter, cwd=ROOT, env=environment(home), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(master), process
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_conversation_at_a_terminal(demo_url, tmp_path):
    with at_terminal(tmp_path, "--url", f"{demo_url}/v1", "--temperature", "0") as (terminal, process):
        assert "demo at http://127.0.0.1" in terminal.until("/help lists the commands.")
        terminal.until("> ")
        terminal.type(f"/image {PICTURES / 'follow_up.png'}\r")
        terminal.until("[1 attached] > ")
        terminal.type("Where is the orange cross?\r")
        assert terminal.until("\r\n> ").endswith("right\r\n> ")
        terminal.type("And where is the square?\r")
        assert terminal.until("\r\n> ").endswith("top right\r\n> ")
        terminal.type("/stats\r")
        assert "tiles 1), 3 answer tokens; first token after" in terminal.until("2 answers: ")
        terminal.until("> ")
        terminal.type("/quti\r")
        assert "Did you mean /quit?" in terminal.until("> ")
        terminal.type("/quit\r")
        assert process.wait(_PATIENCE) == 0


def aborted(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    found = re.search(r'^vllm:request_success_total\{.*finished_reason="abort".*\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_control_c_stops_the_answer_and_not_the_program(demo_url, tmp_path):
    before = aborted(demo_url)
    long = ("--extra-body", json.dumps({"structured_outputs": {"regex": "(again ){600}"}}))
    with at_terminal(tmp_path, "--url", f"{demo_url}/v1", *long) as (terminal, process):
        terminal.until("> ")
        terminal.type("Tell me everything.\r")
        terminal.until("everything.\r\n")
        terminal.until("again")
        terminal.type("\x03")
        terminal.until("> ")
        terminal.type("/stats\r")
        assert "the server counted nothing" in terminal.until("all after")
        terminal.until("> ")
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.interrupt_until("> ")  # at the prompt it takes the line back
        terminal.type("\x04")
        assert process.wait(_PATIENCE) == 0
    deadline = time.monotonic() + _PATIENCE
    while aborted(demo_url) != before + 1:
        assert time.monotonic() < deadline, "the server goes on with an answer that nobody reads"
        time.sleep(0.05)


def test_lines_are_remembered_for_nobody_else(demo_url, tmp_path):
    home = tmp_path / "home"
    for expected in ("> ", "> /help"):
        with at_terminal(home, "--url", f"{demo_url}/v1") as (terminal, process):
            terminal.until("commands.\r\n")
            terminal.until("> ")
            terminal.type("\x1b[A" if expected == "> /help" else "/help")
            terminal.until("/help")
            terminal.type("\r")
            terminal.until("end the conversation")
            terminal.until("> ")  # an end of input that comes before the prompt is nobody's
            terminal.type("\x04")
            assert process.wait(_PATIENCE) == 0
        file = home / "chat" / "history"
        assert file.read_text().splitlines()[0] == "/help"
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_lines_of_a_pipe(demo_url, tmp_path):
    lines = (
        f"/image {PICTURES / 'comparing_1.png'}\n\nHow many hearts are in the picture?\n/save {tmp_path}/talk.json\n"
    )
    done = piped(tmp_path, "--url", f"{demo_url}/v1", "--temperature", "0", lines=lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3\n2 messages are in ")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert (saved["model"], saved["temperature"], saved["messages"][1]["content"]) == ("demo", 0, "3")
    again = httpx.post(f"{demo_url}/v1/chat/completions", json={**saved, "messages": saved["messages"][:1]})
    assert again.json()["choices"][0]["message"]["content"] == "3", "what was saved can be sent"


def test_one_wrong_line_of_a_pipe_stops_nothing(demo_url, tmp_path):
    lines = f"/image {tmp_path}/none.png\n/image {PICTURES / 'reading_text.png'}\nWhat is the word?\n"
    done = piped(tmp_path, "--url", f"{demo_url}/v1", "--temperature", "0", lines=lines)
    assert (done.returncode, done.stdout) == (1, "cat\n")
    assert done.stderr == f"tilewise: {tmp_path}/none.png: No such file or directory.\n"


def test_what_the_server_refuses_is_one_line(demo_url, tmp_path):
    done = piped(tmp_path, "--url", f"{demo_url}/v1", "--max-tokens", "99999", "-q", "Hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert "400 This model's maximum context length is 2048 tokens" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = piped(tmp_path, "--url", f"{demo_url}/v1", "--model", "nobody", "-q", "Hello")
    assert "404 The model `nobody` does not exist." in done.stderr


def test_without_a_server_it_says_how_to_get_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        done = piped(tmp_path, "--url", closed, "-q", "Hello")
    assert done.returncode == 1
    assert done.stderr == (
        f"tilewise: No server answers at {closed}. Start one with `tilewise serve`, or name it with --url.\n"
    )
