"""The benchmarks of the engine on the demo model, at sizes that take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewise.bench.dataset_options import DatasetChoice, RandomOptions
from tilewise.bench.datasets import DatasetSource
from tilewise.bench.engine import ThroughputBench, run_encode, run_latency, run_throughput
from tilewise.bench.options import EncodeOptions, LatencyOptions, ProcessorOptions, StartupOptions
from tilewise.bench.processor import run_processor
from tilewise.bench.startup import FailedStart, empty_folders, run_startup
from tilewise.errors import InvalidConfig

ENGINE = {"model": "demo", "max_model_len": 1024}
ONE_OF_EACH = StartupOptions(num_iters_cold=1, num_iters_warmup=0, num_iters_warm=1)
SMALL = "{(200, 200, 1): 1}"


def source_of(count: int, input_len: int, output_len: int, name: str = "random") -> DatasetSource:
    """Return small random requests; those of random-mm have a picture of 200 pixels a side."""
    drawn = RandomOptions(num_prompts=count, input_len=input_len, output_len=output_len, random_mm_bucket_config=SMALL)
    return DatasetSource(drawn, DatasetChoice(dataset_name=name))


def said(run, options) -> tuple[dict, str]:
    lines: list[str] = []
    return run(options, ENGINE, lines.append), "\n".join(lines)


@pytest.mark.parametrize("beams", [False, True])
def test_latency(beams):
    options = LatencyOptions(
        input_len=8, output_len=4, batch_size=2, n=2, use_beam_search=beams, num_iters_warmup=0, num_iters=3
    )
    found, text = said(run_latency, options)
    assert len(found["latencies"]) == 3
    assert found["avg_latency"] == pytest.approx(sum(found["latencies"]) / 3)
    assert found["percentiles"]["50"] == sorted(found["latencies"])[1]
    assert text.splitlines()[0] == f"Avg latency: {found['avg_latency']} seconds"
    assert [line.split("%")[0] for line in text.splitlines()[1:]] == ["10", "25", "50", "75", "90", "99"]


def test_throughput_counts_the_tokens_of_pictures():
    found, text = said(run_throughput, ThroughputBench(source_of(3, 10, 4, "random-mm")))
    assert found["num_requests"] == 3
    assert found["total_num_tiles"] >= 3
    assert found["total_num_image_tokens"] == 16 * found["total_num_tiles"]
    assert found["total_num_tokens"] > found["total_num_image_tokens"] + 3 * (10 + 4)
    assert found["requests_per_second"] == pytest.approx(3 / found["elapsed_time"])
    assert "Total num output tokens:  12" in text


def test_throughput_of_text_counts_what_was_asked_for():
    found, text = said(run_throughput, ThroughputBench(source_of(4, 20, 5), n=2))
    assert "Total num prompt tokens:  80\nTotal num output tokens:  40" in text
    assert found["total_num_tokens"] == 120
    assert "image" not in text


def test_answers_that_the_context_cuts_short_are_no_measure():
    with pytest.raises(InvalidConfig, match="--input-len 1000 and --output-len 100 are 1100 tokens"):
        run_latency(LatencyOptions(input_len=1000, output_len=100), ENGINE)
    with pytest.raises(InvalidConfig, match=r"1000 tokens leaves 24 of the 100 asked for: the context holds 1024"):
        run_throughput(ThroughputBench(source_of(1, 1000, 100)), ENGINE)


def test_encode():
    found, text = said(run_encode, EncodeOptions(batch_sizes=(1, 3), num_iters_warmup=0, num_iters=2))
    assert [row["batch_size"] for row in found["batches"]] == [1, 3]
    for row in found["batches"]:
        assert row["tiles_per_second"] == pytest.approx(row["batch_size"] / row["median"])
    assert len(text.splitlines()) == 3
    with pytest.raises(InvalidConfig, match="--batch-sizes takes whole numbers above 0"):
        EncodeOptions(batch_sizes=(0,))
    with pytest.raises(InvalidConfig, match="--num-iters-warmup must be at least 0, got -1"):
        EncodeOptions(num_iters_warmup=-1)


def test_the_stages_of_a_processor_add_up():
    options = ProcessorOptions(
        num_prompts=2, input_len=10, output_len=2, random_mm_bucket_config=SMALL, metric_percentiles="50"
    )
    found, text = said(run_processor, options)
    assert found["num_requests"] == 2
    assert found["total_prompt_tokens"] > 16 * found["total_tiles"]
    parts = [found[f"{name}_ms"]["mean"] for name in ("decode", "hash", "tiling", "prompt")]
    assert all(part > 0 for part in parts)
    assert found["encoder_ms"]["mean"] > 0, "pictures that are new have to be encoded"
    assert found["e2el_ms"]["mean"] > found["encoder_ms"]["mean"]
    assert "Multimodal Processor Benchmark Results" in text


def test_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("TILEWISE_CPU_KERNELS", "0")  # compiling them takes half a minute
    found, text = said(run_startup, ONE_OF_EACH)
    for name in ("cold", "warm"):
        (total,) = found[f"{name}_startup_times"]
        parts = [found[f"{name}_{part}_times"][0] for part in ("import", "compilation", "engine", "first_answer")]
        assert 0 < sum(parts) < total
        assert found[f"avg_{name}_startup_time"] == total
    assert "STARTUP TIME BENCHMARK RESULTS" in text
    with pytest.raises(FailedStart, match=r"A start ended with status 1: .*InvalidConfig.*max_model_len"):
        run_startup(ONE_OF_EACH, {**ENGINE, "max_model_len": 10**9})


def test_a_cold_start_finds_nothing_and_leaves_nothing(tmp_path):
    with empty_folders({"model": "demo", "encoder_cache_dir": str(tmp_path)}) as (options, environment):
        folder = Path(environment["XDG_CACHE_HOME"])
        assert list(folder.iterdir()) == []
        assert Path(options["encoder_cache_dir"]).parent == folder
    assert not folder.exists()
