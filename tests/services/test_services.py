"""start, ps, logs and stop, with real processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tilewise.cli import main
from tilewise.cli.services import START, StartOrder, start
from tilewise.errors import InvalidConfig
from tilewise.services import BackgroundService, ServiceFolder, ServiceProblem, birth_of, state_of

# A service is meant to outlive the command that starts it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


def kill(service: BackgroundService) -> None:
    os.killpg(service.pid, signal.SIGKILL)
    wait_until_dead(service.pid)


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 30
    while birth_of(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert birth_of(pid) is None


def test_a_service_is_started_listed_read_and_stopped(start_small, folder, port, capsys):
    assert start_small("some/InternVL3-1B", "--api-key", "secret") == 0
    service = folder.find("InternVL3-1B")
    assert f"InternVL3-1B answers at http://127.0.0.1:{port} (pid {service.pid})." in capsys.readouterr().out

    assert main(["ps"]) == 0
    titles, row = capsys.readouterr().out.splitlines()
    assert titles.split() == ["NAME", "PORT", "PID", "MODEL", "STATE", "SINCE"]
    assert row.split()[:5] == ["InternVL3-1B", str(port), str(service.pid), "some/InternVL3-1B", "running"]

    assert main(["logs", "InternVL3-1B"]) == 0
    assert capsys.readouterr().out.startswith("loading some/InternVL3-1B in process")

    assert main(["stop", "InternVL3-1B"]) == 0
    assert capsys.readouterr().out == f"InternVL3-1B (pid {service.pid}) ended.\n"
    assert not service.alive
    assert folder.all() == []
    assert main(["logs", "InternVL3-1B"]) == 0, "the log stays"


def test_nobody_else_reads_what_is_kept(start_small, folder):
    start_small("m", "--api-key", "secret")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    for kind in ("json", "log", "yml"):
        assert folder.file("m", kind).stat().st_mode & 0o777 == 0o600
    assert "secret" not in folder.file("m", "json").read_text()
    assert "secret" in folder.file("m", "yml").read_text(), "the file of flags is how the key gets there"
    arguments = subprocess.run(["ps", "-o", "args=", "-p", str(folder.find("m").pid)], capture_output=True, text=True)
    assert "secret" not in arguments.stdout


def test_a_name_is_of_one_service_at_a_time(start_small, folder):
    start_small("m", "--name", "one")
    first = folder.find("one")
    with pytest.raises(InvalidConfig, match="Cannot listen at"):
        start_small("m", "--name", "two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other = str(probe.getsockname()[1])
    order = StartOrder.of(START.read(["m", "--name", "one", "--port", other]))
    with pytest.raises(ServiceProblem, match=r"one runs already, at http://127.0.0.1:\d+ \(pid"):
        start(order, [sys.executable, "-c", "raise SystemExit('not to be run')"])
    assert folder.find("one") == first
    assert first.alive


def test_a_service_that_fails_shows_its_last_lines_and_leaves_nothing(start_small, folder):
    with pytest.raises(ServiceProblem, match=r"(?s)m ended with status 1 .*loading m in process \d+\nNo such model\."):
        start_small("m", manners=("fails",))
    assert folder.all() == []
    assert "No such model." in folder.file("m", "log").read_text()


def test_a_service_that_does_not_answer_in_time_is_stopped(start_small, folder, capsys):
    with pytest.raises(ServiceProblem, match=r"did not answer within .* and was stopped"):
        start_small("m", "--timeout", "3", manners=("late",))
    assert folder.all() == []
    wait_until_dead(int(folder.file("m", "log").read_text().split()[-1]))


def test_one_that_says_it_is_not_well_is_not_ready(start_small):
    with pytest.raises(ServiceProblem, match="did not answer within 1 seconds"):
        start_small("m", "--timeout", "1", manners=("sick",))


def test_one_that_will_not_end_is_killed_and_that_is_said(start_small, folder, capsys):
    start_small("m", manners=("deaf",))
    service = folder.find("m")
    capsys.readouterr()
    assert main(["stop", "m", "--timeout", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "still there after 0.3 seconds: SIGKILL" in said
    assert said.endswith(f"m (pid {service.pid}) was killed.\n")
    assert birth_of(service.pid) is None


def test_a_number_that_another_process_has_now_is_left_alone(start_small, folder, capsys):
    start_small("m")
    service = folder.find("m")
    main(["stop", "m"])
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder.keep(dataclasses.replace(service, pid=innocent.pid))
        assert state_of(folder.find("m")) == "ended"
        capsys.readouterr()
        assert main(["stop", "m"]) == 0
        assert "had ended" in capsys.readouterr().out
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()
    assert folder.all() == []


def test_a_name_whose_service_has_died_is_free_again(start_small, folder, capsys):
    start_small("m")
    dead = folder.find("m")
    kill(dead)
    main(["ps"])
    assert "ended" in capsys.readouterr().out
    start_small("m")
    assert folder.find("m").alive
    assert folder.find("m").pid != dead.pid
    assert folder.file("m", "log.1").exists()


def test_following_a_log_ends_with_the_service(start_small, folder, capsys):
    start_small("m")
    service = folder.find("m")
    follower = threading.Thread(target=main, args=(["logs", "-f", "m"],), daemon=True)
    follower.start()
    with open(service.log, "a") as log:  # noqa: PTH123
        log.write("the last word\n")
    kill(service)
    follower.join(timeout=30)
    assert not follower.is_alive()
    assert "the last word\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["stop", "mm"], 1, "There is no service 'mm'. There is none at all."),
        (["logs", "mm"], 1, "There is no service 'mm'."),
        (["ps", "-n", "mm"], 1, "There is no service 'mm'."),
        (["stop", "../mm"], 1, "A service is named by"),
        (["start", "m", "--name", "../mm"], 1, "A service is named by"),
        (["start", "m", "--port", "0"], 1, "a service needs a port that is known"),
        (["start", "m", "--timeout", "0"], 2, "--timeout must be above 0"),
        (["start", "m", "--prot", "1"], 2, "Did you mean --port?"),
        (["start", "m", "-tp", "2", "--nnodes", "2"], 1, "nnodes=2"),
        (["start", "m", "--no_logging"], 2, "never without its log"),
    ],
)
def test_mistakes(folder, capsys, words, code, message):
    assert main(words) == code
    assert message in capsys.readouterr().err
    assert folder.all() == []


def test_a_near_name_is_offered(start_small, capsys):
    start_small("InternVL3-1B")
    assert main(["stop", "InternVL3-2B"]) == 1
    assert "Did you mean InternVL3-1B?" in capsys.readouterr().err


def test_where_the_state_is(tmp_path):
    home, state = str(tmp_path / "home"), str(tmp_path / "state")
    assert ServiceFolder.of({"TILEWISE_HOME": home, "XDG_STATE_HOME": state}).path == tmp_path / "home" / "services"
    assert ServiceFolder.of({"XDG_STATE_HOME": state}).path == tmp_path / "state" / "tilewise" / "services"


def test_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    wait_until_dead(child.pid)
    child.wait()


def test_a_birth_stays_and_is_that_of_one_process(start_small, folder):
    ours = birth_of(os.getpid())
    start_small("m")
    assert ours is not None
    assert birth_of(os.getpid()) == ours
    assert birth_of(folder.find("m").pid) not in (None, ours)
