"""Downloads from a stand-in hub: what is fetched, what is not fetched twice, and what goes on after a break."""

from __future__ import annotations

import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.weights.broken import refused
from tests.weights.hub_server import HubServer, sha256
from tilewise.errors import DownloadFailed, InvalidCheckpoint, UnknownModel
from tilewise.weights.checkpoint import find_model
from tilewise.weights.hubs.snapshot import RemoteFile

SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
NOT_NEEDED = (
    *("README.md", "modeling.py", "examples.png", "pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf"),
    *("model.safetensors", "consolidated.safetensors", "consolidated.safetensors.index.json", "onnx/config.json"),
    "original/model.safetensors",
)
FIND = "from tilewise.weights.checkpoint import find_model; find_model('tiny/model', hub={!r}, cache={!r})"
Files = dict[str, bytes]
Find = Callable[..., Path]


@pytest.fixture(params=["huggingface", "modelscope"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def find(where: str) -> Find:
    return lambda **options: find_model("tiny/model", hub=where, **options)


def contents(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ranges_of(hub: HubServer, content: bytes) -> list[str | None]:
    return [seen.range for seen in hub.seen if seen.path == f"/cdn/{sha256(content)}"]


def partials(folder: Path) -> list[Path]:
    return list(folder.rglob("*.incomplete"))


# What is fetched


def test_only_the_needed_files_are_fetched(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint | dict.fromkeys(NOT_NEEDED, b"not needed"))
    folder = find()
    assert hub.fetched() == sorted(checkpoint)
    assert contents(folder) == checkpoint


def test_a_single_file_of_weights(hub: HubServer, checkpoint: Files, find: Find) -> None:
    files = {name: content for name, content in checkpoint.items() if name not in (INDEX, *SHARDS)}
    hub.add("tiny/model", files | {"model.safetensors": b"weights", "adapter.safetensors": b"not needed"})
    assert contents(find()) == files | {"model.safetensors": b"weights"}


def test_the_config_comes_without_weights_first(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    small = sorted(set(checkpoint) - set(SHARDS))
    folder = find(weights=False)
    assert hub.fetched() == small
    assert find() == folder
    assert hub.fetched() == sorted([*small, *SHARDS])


def test_what_is_here_is_not_fetched_again(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    folder = find()
    hub.seen.clear()
    assert find() == folder
    assert not hub.fetched()
    assert len(hub.seen) == 1  # the listing


def test_a_new_commit_brings_what_has_changed(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    find()
    hub.seen.clear()
    changed = checkpoint | {"tokenizer_config.json": checkpoint["tokenizer_config.json"].replace(b"Qwen2", b"Qwen3")}
    hub.add("tiny/model", changed)
    assert contents(find()) == changed
    assert hub.fetched() == ["tokenizer_config.json"]


def test_a_commit_that_is_here_needs_no_network(hub: HubServer, checkpoint: Files, find: Find) -> None:
    commit = hub.add("tiny/model", checkpoint)
    folder = find(revision=commit)
    hub.seen.clear()
    assert find(revision=commit) == folder
    assert not hub.seen


def test_a_commit_of_which_another_tool_fetched_the_config(hub: HubServer, checkpoint: Files, find: Find) -> None:
    commit = hub.add("tiny/model", checkpoint)
    folder = find(revision=commit)
    for path in folder.iterdir():
        if path.name.startswith("tokenizer"):
            path.unlink()
    assert contents(find(revision=commit)) == checkpoint


def test_another_cache_folder(hub: HubServer, checkpoint: Files, find: Find, tmp_path: Path) -> None:
    hub.add("tiny/model", checkpoint)
    assert find(cache=str(tmp_path / "mine")).is_relative_to(tmp_path / "mine")


def test_two_at_once_fetch_once(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(find())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert hub.fetched() == sorted(checkpoint)


def test_an_older_modelscope_cache_is_used(hub: HubServer, checkpoint: Files, tmp_path: Path) -> None:
    hub.add("tiny/model.v1", checkpoint)
    old = tmp_path / "modelscope" / "hub" / "models" / "tiny" / "model___v1"
    old.mkdir(parents=True)
    damaged = {SHARDS[0]: b"\0" * len(checkpoint[SHARDS[0]])}
    for name, content in (checkpoint | damaged).items():
        (old / name).write_bytes(content)
    assert contents(find_model("tiny/model.v1", hub="modelscope")) == checkpoint
    assert hub.fetched() == [SHARDS[0]]


def test_huggingface_hub_and_we_share_a_cache(hub: HubServer, checkpoint: Files, tmp_path: Path) -> None:
    """Its own client downloads from the stand-in, and each finds what the other has put there."""
    hub.add("tiny/model", checkpoint)
    code = "import sys, huggingface_hub as h; print(h.snapshot_download('tiny/model', cache_dir=sys.argv[1]))"

    def theirs(cache: Path, offline: str) -> Path:
        environment = os.environ | {"HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        run = subprocess.run([sys.executable, "-c", code, str(cache)], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return Path(run.stdout.strip())

    folder = theirs(tmp_path / "theirs", offline="0")
    assert contents(folder) == checkpoint
    hub.seen.clear()
    assert find_model("tiny/model", cache=str(tmp_path / "theirs")) == folder
    assert not hub.fetched()
    ours = find_model("tiny/model", cache=str(tmp_path / "ours"))
    assert theirs(tmp_path / "ours", offline="1") == ours


# Breaks


def test_a_broken_connection_goes_on_where_it_was(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    hub.cut[SHARDS[1]] = [1000, 500]
    assert contents(find()) == checkpoint
    assert ranges_of(hub, checkpoint[SHARDS[1]]) == [None, "bytes=1000-", "bytes=1500-"]


def test_the_next_run_goes_on_where_the_last_one_broke(
    hub: HubServer, checkpoint: Files, find: Find, tmp_path: Path
) -> None:
    hub.add("tiny/model", checkpoint)
    hub.cut[SHARDS[1]] = [1000, 0, 0, 0]
    refused(DownloadFailed, find, "tiny/model", "run goes on", "--hub modelscope")
    assert [path.stat().st_size for path in partials(tmp_path) if path.stem == sha256(checkpoint[SHARDS[1]])] == [1000]
    hub.seen.clear()
    assert contents(find()) == checkpoint
    assert ranges_of(hub, checkpoint[SHARDS[1]]) == ["bytes=1000-"]
    assert not partials(tmp_path)


def test_a_server_without_ranges_begins_again(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    hub.ranges = False
    hub.cut[SHARDS[0]] = [1000]
    assert contents(find()) == checkpoint


def test_a_passing_error_is_tried_again(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    hub.cut["tokenizer.json"] = [0, 0]
    assert contents(find()) == checkpoint


def arrived(folder: Path, content: bytes) -> int:
    """Bytes that are there of a file in the making; one that is finished meanwhile has gone."""
    for path in partials(folder):
        with suppress(FileNotFoundError):
            if path.stem == sha256(content):
                return path.stat().st_size
    return 0


def test_ctrl_c_keeps_what_has_arrived(hub: HubServer, checkpoint: Files, where: str, tmp_path: Path) -> None:
    hub.add("tiny/model", checkpoint)
    hub.slow = {SHARDS[0]}
    code = (
        # Where tests run in the background the signal is ignored, and children inherit that.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + FIND.format(where, str(tmp_path))
    )
    slow = checkpoint[SHARDS[0]]
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        while arrived(tmp_path, slow) < len(slow) // 4 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert "KeyboardInterrupt" in error
    kept = arrived(tmp_path, slow)
    assert kept > 0
    hub.slow.clear()
    hub.seen.clear()
    assert contents(find_model("tiny/model", hub=where, cache=str(tmp_path))) == checkpoint
    assert ranges_of(hub, checkpoint[SHARDS[0]]) == [f"bytes={kept}-"]


def test_ctrl_c_while_downloads_are_being_started(
    hub: HubServer, checkpoint: Files, find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("tiny/model", checkpoint)
    hub.slow = {SHARDS[0]}
    slow = checkpoint[SHARDS[0]]
    submit = ThreadPoolExecutor.submit

    def interrupted(pool: ThreadPoolExecutor, fetch: Callable[[RemoteFile], None], file: RemoteFile) -> Future[None]:
        future = submit(pool, fetch, file)
        while file.name == SHARDS[0] and arrived(tmp_path, slow) < len(slow) // 4:
            time.sleep(0.01)
        if file.name == SHARDS[0]:
            raise KeyboardInterrupt
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find()
    assert 0 < arrived(tmp_path, slow) < len(slow)


# Without a network


def test_offline_uses_the_cache_and_asks_nobody(
    hub: HubServer, checkpoint: Files, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("tiny/model", checkpoint)
    folder = find()
    hub.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find() == folder
    assert not hub.seen


def test_offline_and_not_here(hub: HubServer, checkpoint: Files, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tiny/model", checkpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(DownloadFailed, find, "tiny/model", "HF_HUB_OFFLINE", "nothing of it", "local folder")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    find(weights=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(DownloadFailed, find, SHARDS[0], "HF_HUB_OFFLINE")
    assert find(weights=False).is_dir()


@pytest.mark.parametrize("trouble", ["stopped", "500", "403"])
def test_a_hub_that_does_not_answer_leaves_the_cache(
    trouble: str, hub: HubServer, checkpoint: Files, find: Find, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("tiny/model", checkpoint)
    folder = find()
    if trouble == "stopped":
        hub.close()
    else:
        hub.status["/api/"] = int(trouble)
    with caplog.at_level(logging.WARNING, "tilewise"):
        assert find() == folder
    [record] = caplog.records
    assert "tiny/model is used as last downloaded" in record.message


def test_a_hub_that_does_not_answer_and_nothing_here(hub: HubServer, find: Find) -> None:
    hub.status["/api/"] = 503
    refused(DownloadFailed, find, "tiny/model", "127.0.0.1 answers 503", "HF_ENDPOINT")
    hub.close()
    refused(DownloadFailed, find, "tiny/model", f"127.0.0.1:{hub.port}", "local folder")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("[Errno -2] Name or service not known", "the name {} cannot be found, as without a network"),
        ("[Errno -3] Temporary failure in name resolution", "the name {} cannot be found, as without a network"),
        ("[Errno 111] Connection refused", "{} cannot be reached (connection refused)"),
        ("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred (_ssl.c:1006)", "{} cannot be reached (eof occurred)"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)", "the certificate of {} is not"),
    ],
)
def test_why_a_hub_does_not_answer_is_a_sentence(
    words: str, says: str, hub: HubServer, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewise.weights.hubs.web.PAUSES", ())

    def fail(*args: object, **options: object) -> None:
        raise httpx.ConnectError(words)

    monkeypatch.setattr(httpx.Client, "stream", fail)
    with pytest.raises(DownloadFailed) as caught:
        find()
    message = str(caught.value)
    assert message.startswith(f"tiny/model cannot be downloaded: {says.format(f'127.0.0.1:{hub.port}')}")
    assert not re.search(r"Errno|_ssl|\[", message)
    assert "--download-dir (download_dir in Python)" in message


# Refusals


def test_an_id_that_the_hub_does_not_know(hub: HubServer, find: Find) -> None:
    refused(UnknownModel, find, "tiny/model", "knows no such model", hub.url, "spelling")


def test_a_revision_that_the_hub_does_not_know(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    refused(UnknownModel, lambda: find(revision="v9"), "tiny/model has no revision 'v9'", hub.url)


def test_a_gated_model_needs_a_token(
    hub: HubServer, checkpoint: Files, find: Find, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("tiny/model", checkpoint, token="secret")
    variable = "HF_TOKEN" if where == "huggingface" else "MODELSCOPE_API_TOKEN"
    refused(DownloadFailed, find, "tiny/model", "terms", variable)
    monkeypatch.setenv(variable, "secret")
    assert contents(find()) == checkpoint
    elsewhere = [seen for seen in hub.seen if seen.path.startswith("/cdn/")]
    assert elsewhere
    assert not any(seen.token for seen in elsewhere)  # nor does another host get the token


def test_something_else_answers(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.status["/api/"] = 200  # as a login page does: an answer that is no listing
    refused(DownloadFailed, find, "no listing of files", "proxies")


def test_a_listing_that_would_leave_the_cache(
    hub: HubServer, checkpoint: Files, find: Find, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("tiny/model", checkpoint)
    monkeypatch.setattr("tests.weights.hub_server.sha256", lambda content: "../../../../outside")
    refused(DownloadFailed, find, "no listing of files", "../outside")
    assert not list(tmp_path.rglob("*outside*"))


def test_no_safetensors(hub: HubServer, checkpoint: Files, find: Find) -> None:
    files = {name: content for name, content in checkpoint.items() if name not in (INDEX, *SHARDS)}
    hub.add("tiny/model", files | dict.fromkeys(["pytorch_model-1.bin", "pytorch_model-2.bin", "a.gguf"], b"x"))
    refused(InvalidCheckpoint, find, "tiny/model", "2 *.bin", "1 *.gguf", "safetensors")
    assert not hub.fetched()


def test_no_config(hub: HubServer, find: Find) -> None:
    hub.add("tiny/model", {"README.md": b"soon"})
    refused(InvalidCheckpoint, find, "tiny/model", "config.json", "1 *.md")


def test_an_index_that_lists_a_shard_that_is_not_there(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", {name: content for name, content in checkpoint.items() if name != SHARDS[1]})
    refused(InvalidCheckpoint, find, "tiny/model", INDEX, SHARDS[1], "1 of 3", "--revision")
    assert not set(hub.fetched()) & set(SHARDS)


def test_an_index_that_points_outside_the_folder(hub: HubServer, checkpoint: Files, find: Find) -> None:
    index = re.sub(rb"model-00002-of-00003", rb"../secret", checkpoint[INDEX])
    hub.add("tiny/model", checkpoint | {INDEX: index})
    refused(InvalidCheckpoint, find, INDEX, "'../secret.safetensors'", "outside")
    assert not set(hub.fetched()) & set(SHARDS)


# Bytes, room and bars


def test_other_bytes_than_listed(hub: HubServer, checkpoint: Files, find: Find, tmp_path: Path) -> None:
    hub.add("tiny/model", checkpoint)
    hub.altered[SHARDS[0]] = b"\0" * len(checkpoint[SHARDS[0]])
    refused(DownloadFailed, find, "tiny/model", SHARDS[0], sha256(checkpoint[SHARDS[0]]))
    hub.altered.clear()
    assert contents(find()) == checkpoint


@pytest.mark.parametrize("name", ["tokenizer.json", SHARDS[0]])
@pytest.mark.parametrize("change", [-7, 7])
def test_another_size_than_listed(name: str, change: int, hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    listed = len(checkpoint[name])
    hub.altered[name] = (checkpoint[name] + b"\0" * 7)[: listed + change]
    refused(DownloadFailed, find, name, f"{listed} bytes", f"sends {listed + change}")


def test_no_room_for_the_whole(hub: HubServer, checkpoint: Files, find: Find) -> None:
    hub.add("tiny/model", checkpoint)
    hub.listed_size[SHARDS[2]] = 1 << 60
    refused(DownloadFailed, find, "tiny/model", "1073741824.0 GiB", "free", "--download-dir")
    assert not set(hub.fetched()) & set(SHARDS)


def test_a_disk_that_fills_up(hub: HubServer, checkpoint: Files, find: Find, tmp_path: Path) -> None:
    hub.add("tiny/model", checkpoint)
    folder = find(weights=False)
    blobs = folder.parent.parent / "blobs"
    (blobs / f"{sha256(checkpoint[SHARDS[0]])}.incomplete").symlink_to("/dev/full")
    refused(DownloadFailed, find, "tiny/model", str(blobs.parent), "No space left", "--download-dir")


def test_a_terminal_gets_a_bar(hub: HubServer, checkpoint: Files, where: str, tmp_path: Path) -> None:
    hub.add("tiny/model", checkpoint)
    code = FIND.format(where, str(tmp_path))
    ours, theirs = pty.openpty()
    run = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=os.environ | {"TERM": "xterm"})
    shown = os.read(ours, 1 << 16).decode()
    os.close(theirs)
    os.close(ours)
    assert run.returncode == 0
    assert "Downloading tiny/model" in shown


def test_without_a_terminal_nothing_is_printed(
    hub: HubServer, checkpoint: Files, find: Find, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add("tiny/model", checkpoint)
    find()
    assert capfd.readouterr() == ("", "")
