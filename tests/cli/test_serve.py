"""`tilewise serve` up to the server itself."""

from __future__ import annotations

import logging

import pytest

import tilewise.server
from tilewise.cli import main
from tilewise.cli.flags.settings import serve_flags
from tilewise.cli.flags.verb import GROUPS


@pytest.fixture
def asked(monkeypatch):
    """What the server was asked to run."""
    calls = []
    monkeypatch.setattr(tilewise.server, "run", lambda engine, server, encoding: calls.append((engine, server)) or 0)
    root, ours = logging.getLogger(), logging.getLogger("tilewise")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield calls
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_the_server_is_run_with_both_configs(asked, capsys):
    assert main(["serve", "some/model", "--max_num_seqs", "7", "--port=9", "-cc.cudagraph_mode", "FULL"]) == 0
    [(engine, server)] = asked
    assert (engine.model, engine.max_num_seqs, server.port) == ("some/model", 7, 9)
    err = capsys.readouterr().err
    assert "non-default args: {" in err
    assert "cudagraph_mode FULL became FULL_DECODE_ONLY" in err


def test_no_model_is_the_demo(asked):
    assert main(["serve"]) == 0
    assert asked[0][0].model == "demo"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--prot", "1"], 2, "There is no flag --prot. Did you mean --port?"),
        (["--port", "x"], 2, "--port must be a whole number"),
        (["-tp", "2", "--nnodes", "2"], 1, "nnodes=2"),
        (["--enable-log-outputs"], 1, "enable_log_outputs needs enable_log_requests"),
        (["--max-num-seqs", "0"], 1, "max_num_seqs must be above 0, got 0"),
    ],
)
def test_mistakes_are_one_line(asked, capsys, words, code, message):
    assert main(["serve", *words]) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert asked == []


def test_help_teaches(capsys):
    assert main(["serve", "--help"]) == 0
    overview = capsys.readouterr().out
    assert "examples:" in overview
    assert main(["serve", "--help=all"]) == 0
    whole = capsys.readouterr().out
    assert all(f"{flag.dashed}" in whole for flag in serve_flags())
    assert all(flag.group in GROUPS for flag in serve_flags())


def test_help_of_a_group_and_about_a_word(capsys):
    main(["serve", "--help=limits"])
    limits = capsys.readouterr().out
    assert "--request-timeout X" in limits
    assert "--port" not in limits
    main(["serve", "--help=ssl"])
    assert "--ssl-keyfile" in capsys.readouterr().out
    main(["serve", "--help=limts"])
    assert "No flag is about 'limts'. Did you mean limits?" in capsys.readouterr().out
