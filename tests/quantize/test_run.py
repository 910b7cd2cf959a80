"""A run that is ended, a disk that is full, sources and folders that cannot be."""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.quantize.reading import tensors_of
from tests.tiny import SPECS, TWINS, write_hf, write_original
from tests.weights.broken import change_config, change_tensors, refused
from tilewise.cli import main
from tilewise.errors import InvalidCheckpoint, InvalidConfig, InvalidRequest, Unfinished
from tilewise.quantize import SCHEMES, QuantizeOptions
from tilewise.quantize.run import quantize

SMALL = 8000
"""Bytes of a shard, of which a twin then has a dozen."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_original(tmp_path_factory.mktemp("source"), SPECS["qwen2-300m"])


def run(source: Path, out: Path, **options: Any) -> None:
    quantize(QuantizeOptions(model=str(source), out=str(out), **options), show=False)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # by pytest-xdist's own thread
@pytest.mark.parametrize(("scheme", "smooth"), [("w8a8", None), ("w4a16", None), ("w8a8", 0.5), ("w8a8-static", 0.75)])
def test_a_run_that_was_killed_goes_on(source, tmp_path, scheme, smooth):
    """Files that were whole are not written again, and the end is the same as without the kill."""
    out = tmp_path / "out"
    options = {"scheme": scheme, "smooth": smooth, "max_shard_size": SMALL}
    # Forked, as a process that begins anew takes seconds to import what this one has.
    process = multiprocessing.get_context("fork").Process(target=run, args=(source, out), kwargs=options)
    process.start()
    while not any(out.glob("model-0*2-of-*.safetensors")):
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    whole = {path: path.stat().st_ino for path in out.glob("*.safetensors")}
    assert not (out / "config.json").exists()
    assert not list(out.glob("*.index.json"))
    run(source, out, **options)
    assert {path: path.stat().st_ino for path in whole} == whole
    run(source, tmp_path / "undisturbed", **options)
    assert files_of(out) == files_of(tmp_path / "undisturbed")


@contextmanager
def small_files_only(most: int) -> Iterator[None]:
    """No file may grow beyond `most` bytes: what a full disk looks like to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(source, tmp_path):
    """The embedding's shard is the largest by far, and the others are done."""
    out = tmp_path / "out"
    with small_files_only(30_000):
        refused(Unfinished, lambda: run(source, out, max_shard_size=SMALL), str(out), "of weights are done", "goes on")
    left = {path.name for path in out.iterdir()}
    assert "quantize.json" in left
    assert len(left) > 2
    assert not any(name.endswith(".partial") or name in ("config.json", "README.md") for name in left)
    run(source, out, max_shard_size=SMALL)
    assert set(tensors_of(out)) >= set(tensors_of(source))


def test_a_run_that_is_finished_is_left_alone(source, tmp_path):
    run(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    run(source, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_what_was_lost_of_a_finished_run_is_written_again(source, tmp_path, lost):
    run(source, tmp_path / "out", scheme="w8a8")
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / lost).unlink()
    run(source, tmp_path / "out", scheme="w8a8")
    assert files_of(tmp_path / "out") == before
    (tmp_path / "out" / "model.safetensors").write_bytes(before["model.safetensors"][:1000])
    run(source, tmp_path / "out", scheme="w8a8")
    assert files_of(tmp_path / "out") == before


def test_whichever_files_of_a_smoothed_run_were_lost(source, tmp_path):
    """Norms are written behind all matrices, and their factors are found again from the first stage on."""
    options: dict[str, Any] = {"scheme": "w8a8-static", "smooth": 0.5, "max_shard_size": SMALL}
    out = tmp_path / "out"
    run(source, out, calibration_samples=2, **options)
    before = files_of(out)
    shards = sorted(out.glob("*.safetensors"))
    for lost in ([shards[0]], [shards[4]], shards[-3:], [shards[2], shards[-1]], shards):
        for path in lost:
            path.unlink()
        run(source, out, calibration_samples=2, **options)
        assert files_of(out) == before


def test_another_strength_in_the_same_folder(source, tmp_path):
    run(source, tmp_path / "out", smooth=0.5, calibration_samples=1)
    again = lambda: run(source, tmp_path / "out", smooth=0.6, calibration_samples=1)  # noqa: E731
    refused(InvalidRequest, again, "smooth (0.5, now 0.6)")


def test_another_scheme_in_the_same_folder(source, tmp_path):
    run(source, tmp_path / "out")
    refused(InvalidRequest, lambda: run(source, tmp_path / "out", scheme="fp8"), "scheme ('w8a8', now 'fp8')")


def test_another_source_in_the_same_folder(source, tmp_path):
    other = write_original(tmp_path / "other", SPECS["qwen2-300m"], seed=1)
    run(source, tmp_path / "out")
    refused(InvalidRequest, lambda: run(other, tmp_path / "out"), "another source")


def test_folders_that_cannot_be(source, tmp_path):
    refused(InvalidRequest, lambda: run(source, source), "is the source")
    refused(InvalidRequest, lambda: run(source, source / "out"), "is the source")
    (tmp_path / "link").symlink_to(source)
    refused(InvalidRequest, lambda: run(source, tmp_path / "link"), "is the source")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    refused(InvalidRequest, lambda: run(source, tmp_path / "full"), "not an empty folder")
    (tmp_path / "file").write_text("mine")
    refused(InvalidRequest, lambda: run(source, tmp_path / "file"), f"{tmp_path / 'file'} is a file")
    below = tmp_path / "file" / "out"
    refused(InvalidRequest, lambda: run(source, below), f"{below} cannot be made (Not a directory)", "name a folder")
    refused(InvalidRequest, lambda: run(source, Path("/proc/nope")), "/proc/nope cannot be made", "name a folder")


def test_an_output_called_as_the_shipped_model_is(source, tmp_path, monkeypatch, capsys):
    """`tilewise serve demo` would not start the folder; ./demo can only be that, and messages have its whole path."""
    monkeypatch.chdir(tmp_path)
    refused(InvalidRequest, lambda: run(source, Path("demo")), "the model that ships", "such as demo-w8a8")
    assert not list(tmp_path.iterdir())
    assert main(["quantize", str(source), "./demo", "--scheme", "w8a8"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/demo: 14 layers in w8a8")


@pytest.mark.parametrize("left", [None, "{", '{"layers": {"a": 3}}', '{"layers": [1]}'])
def test_a_journal_that_is_lost_or_damaged(source, tmp_path, left):
    out = tmp_path / "out"
    run(source, out, max_shard_size=SMALL)
    (out / "config.json").unlink()
    (out / "quantize.json").unlink()
    if left is not None:
        (out / "quantize.json").write_text(left)
    said = ("has no quantize.json", "an ended run goes on") if left is None else ("quantize.json is damaged",)
    refused(InvalidRequest, lambda: run(source, out, max_shard_size=SMALL), str(out), *said, "empty")


def test_samples_have_a_bar_of_their_own(source, tmp_path):
    """Samples are counted in blocks that they go through; the other bar counts bytes of weights."""
    bars = {}

    class Counting:
        def __init__(self, total, desc):
            self.total, self.done, self.closed = total, 0, False
            bars[desc] = self

        def update(self, count):
            self.done += count

        def close(self):
            self.closed = True

    options = QuantizeOptions(model=str(source), out=str(tmp_path / "out"), scheme="w4a16", calibration_samples=2)
    quantize(options, show=Counting)
    assert list(bars) == ["quantising to w4a16", "calibrating"]
    assert all(bar.done == bar.total > 0 and bar.closed for bar in bars.values())
    bars.clear()
    quantize(QuantizeOptions(model=str(source), out=str(tmp_path / "fp8"), scheme="fp8"), show=Counting)
    assert list(bars) == ["quantising to fp8"]


def test_a_group_that_is_smaller_than_usual_says_why(source, tmp_path, caplog):
    run(source, tmp_path / "out", scheme="w4a16", error_feedback=False)
    assert (
        "group_size: one scale for each output instead of 128, as no group of 16 or more divides the 36" in caplog.text
    )


def test_sources_that_are_quantised_already(tmp_path):
    awq = write_original(tmp_path / "awq", SPECS["qwen2-300m"])
    change_config(awq, quantization_config={"quant_method": "awq"})
    refused(InvalidCheckpoint, lambda: run(awq, tmp_path / "out"), "quantised already, by awq")
    blocks = write_original(tmp_path / "blocks", TWINS["InternVL3_5-GPT-OSS-20B-A4B-Preview-MXFP4"])
    refused(InvalidCheckpoint, lambda: run(blocks, tmp_path / "out"), "quantised already, by mxfp4")


def test_experts_without_names(tmp_path):
    stacked = write_hf(tmp_path / "stacked", SPECS["gptoss-300m-head"])
    refused(InvalidConfig, lambda: run(stacked, tmp_path / "out"), "experts", "MXFP4")


def test_sources_that_are_damaged(tmp_path):
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    broken = write_original(tmp_path / "lacks", SPECS["qwen2-300m"])
    change_tensors(broken, lambda tensors: tensors.pop(name))
    refused(InvalidCheckpoint, lambda: run(broken, tmp_path / "out"), name)
    broken = write_original(tmp_path / "shape", SPECS["qwen2-300m"])
    change_tensors(broken, lambda tensors: tensors.update({name: torch.zeros(3, 4)}))
    refused(InvalidCheckpoint, lambda: run(broken, tmp_path / "out"), name, "[3, 4]")
    broken = write_original(tmp_path / "nan", SPECS["qwen2-300m"])
    change_tensors(broken, lambda tensors: tensors[name].__setitem__((0, 0), float("nan")))
    refused(InvalidCheckpoint, lambda: run(broken, tmp_path / "out"), name, "not finite")
    broken = write_original(tmp_path / "half", SPECS["qwen2-300m"], shards=2)
    (broken / "model-00002-of-00002.safetensors").unlink()
    refused(InvalidCheckpoint, lambda: run(broken, tmp_path / "out"), "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "w4a4"}, ("scheme", "w4a4", "w8a8-static")),
        ({"scheme": "w4a16", "format": "modelslim"}, ("ModelSlim", "w4a16", "compressed-tensors")),
        ({"group_size": 128}, ("group_size", "change nothing", "w4a16")),
        ({"asymmetric": True}, ("asymmetric", "change nothing")),
        ({"error_feedback": False, "scheme": "fp8"}, ("no_error_feedback", "change nothing")),
        ({"calibration_samples": 3}, ("calibration_samples", "change nothing")),
        ({"smooth": 2.0}, ("smooth", "from 0 to 1", "2.0")),
        ({"smooth": -0.1}, ("smooth", "from 0 to 1", "-0.1")),
        ({"smooth": float("nan")}, ("smooth", "from 0 to 1", "nan")),
        ({"smooth": float("inf")}, ("smooth", "finite")),
        ({"smooth": True}, ("smooth", "must be a number", "True")),
        ({"smooth": "0.5"}, ("smooth", "must be a number", "'0.5'")),
        ({"smooth": 0.5, "scheme": "fp8"}, ("smooth=0.5", "fp8", "w8a8 and w8a8-static", "leave smooth out")),
        ({"smooth": 0.5, "scheme": "w4a16"}, ("smooth=0.5", "w4a16", "w8a8 and w8a8-static")),
        ({"smooth": 0.5, "scheme": "w8a16"}, ("smooth=0.5", "w8a16", "w8a8 and w8a8-static")),
        ({"scheme": "w4a16", "group_size": 100}, ("group_size", "100", "128")),
        ({"scheme": "w4a16", "group_size": 128}, ("group_size=128", "36 inputs", "q_proj")),
        ({"scheme": "w4a16", "calibration": "/no/such/folder"}, ("calibration", "/no/such/folder")),
        ({"max_shard_size": 0}, ("max_shard_size", "0")),
    ],
)
def test_options_that_cannot_be(source, tmp_path, options, words):
    refused(InvalidConfig, lambda: run(source, tmp_path / "out", **options), *words)
    assert not (tmp_path / "out").exists()


def test_files_of_at_most_so_many_bytes(source, tmp_path):
    run(source, tmp_path / "out", max_shard_size=SMALL)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes: dict[str, list[int]] = {}
    for name, tensor in tensors_of(tmp_path / "out").items():
        sizes.setdefault(index["weight_map"][name], []).append(tensor.nbytes)
    assert len(sizes) > 5
    assert all(sum(found) <= SMALL or len(found) == 1 for found in sizes.values())
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))


def test_the_command_line(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["quantize", str(source), str(out), "--scheme", "w4a16", "--no-error-feedback"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 14 layers in w4a16" in said
    assert "Worst layer: language_model.model.layers." in said
    assert main(["quantize", str(source), str(out), "--scheme", "fp8", "--group-size", "64"]) == 1
    assert "group_size would change nothing with scheme fp8" in capsys.readouterr().err
    assert main(["quantize", "--smooth", str(source), str(out)]) == 2
    assert "name MODEL and OUT in front, or give one, --smooth=0.5" in capsys.readouterr().err
    assert main(["quantize", str(source), str(tmp_path / "smooth"), "--calibration-samples", "1", "--smooth"]) == 0
    assert json.loads((tmp_path / "smooth" / "quantize.json").read_text())["asked"]["smooth"] == 0.5
    assert main(["quantize", str(source), str(out), "--shceme", "fp8"]) == 2
    assert "Did you mean --scheme?" in capsys.readouterr().err


def test_the_help_explains_each_scheme(capsys):
    assert main(["quantize", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (*SCHEMES.values(), "--calibration FOLDER", "--smooth [STRENGTH]", "goes on when the same command"):
        assert text in said
