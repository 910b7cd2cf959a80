"""`tilewise plan` as a user meets it: what fits, what is said where it does not, and what the engine does in fact."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.called import called
from tests.tiny import SPECS, write_original
from tilewise import LLM
from tilewise.cli import main
from tilewise.config import EngineConfig
from tilewise.host import Memory
from tilewise.models.load import Architecture
from tilewise.plan import resolve
from tilewise.platforms import current_platform
from tilewise.runner.build import device_facts, largest_facts
from tilewise.units import in_bytes
from tilewise.weights.family import MEMBERS
from tilewise.weights.folder import CheckpointFolder

GIB = 2**30
GUIDE = ["--trust-remote-code", "--async-scheduling", "--max-model-len", "40960", "--max-num-batched-tokens", "16384",
         "--gpu-memory-utilization", "0.9", "--compilation-config", '{"cudagraph_mode":"FULL_DECODE_ONLY", '
         '"cudagraph_capture_sizes":[4,32,64,128,192,256,512]}', "--additional-config",
         '{"enable_weight_nz_layout": true, "enable_cpu_binding": true}', "--mm-processor-cache-gb", "0",
         "--enable-chunked-prefill", "--enable-prefix-caching", "--safetensors-load-strategy", "prefetch",
         "--allowed-local-media-path", "/"]  # fmt: skip
"""Flags that Ascend's guides of InternVL3.5 start both of their servers with."""


@pytest.fixture
def plan(capsys):
    def run(*words: str, status: int = 0) -> dict:
        assert main(["plan", *words, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def page(capsys):
    def run(*words: str, status: int = 0) -> str:
        assert main(["plan", *words]) == status
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "quantization": "int8"},
        {"dtype": "float32", "quantization": "fp8", "kv_cache_dtype": "int8"},
        {"max_model_len": 512, "max_num_seqs": 7, "block_size": 32, "max_num_batched_tokens": 300},
        {"kv_cache_memory_bytes": 2**21, "encoder_cache_gb": 0.01, "max_model_len": -1},
        {"speculative_config": {"model": "demo", "num_speculative_tokens": 2}, "max_model_len": 256},
    ],
)
def test_the_engine_starts_with_the_sizes_of_the_plan(plan, options):
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", _written(value))]
    found = plan("demo", *flags)["plan"]
    llm = LLM("demo", **options)
    limits, reasons = llm.resolved.limits, llm.resolved.reasons
    llm.close()
    assert (found["num_blocks"], found["tile_pages"], found["max_model_len"]) == (
        *(limits.num_blocks, limits.tile_pages, limits.max_model_len),
    )
    assert reasons["weights"] == in_bytes(found["weight_bytes"])
    assert reasons["activations"].startswith(in_bytes(found["ranks"][0]["activation_bytes"]))


def _written(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def test_a_folder_of_another_model_on_two_ranks_of_this_machine(plan, tmp_path):
    folder = write_original(tmp_path, SPECS["qwen3moe-300m-head"])
    found = plan(str(folder), "-tp", "2", "--max-model-len", "256")["plan"]
    llm = LLM(str(folder), tensor_parallel_size=2, max_model_len=256)
    limits, reasons = llm.resolved.limits, llm.resolved.reasons
    llm.close()
    assert (found["num_blocks"], found["tile_pages"]) == (limits.num_blocks, limits.tile_pages)
    assert reasons["weights"] == in_bytes(found["weight_bytes"])


@pytest.mark.parametrize(
    "layout",
    [
        {"pipeline_parallel_size": 2},
        {"tensor_parallel_size": 2, "enable_expert_parallel": True},
        {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "enable_expert_parallel": True},
        {"tensor_parallel_size": 2, "quantization": "int8", "kv_cache_dtype": "int8"},
        {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "weights", "data_parallel_size": 2},
        {"vision_workers": 2},
    ],
    ids=str,
)
def test_ranks_resolve_what_is_planned(plan, tmp_path, layout):
    """The numbers that a first rank would tell the others, for layouts of more processes than a test should start."""
    spec = replace(
        SPECS["qwen3moe-300m-head"], heads=8, kv_heads=2, head_dim=8, hidden=64, expert_intermediate=24, vision_heads=4
    )
    folder = write_original(tmp_path, replace(spec, experts=5))
    config = EngineConfig(model=str(folder), max_model_len=256, dtype="float32", **layout)
    platform, architecture = current_platform(), Architecture.of(CheckpointFolder.open(folder))
    facts = largest_facts(config, architecture, torch.float32, platform.ops())
    devices = config.layout.devices
    share = Memory(platform.total_memory() // devices, platform.free_memory() // devices)
    limits = resolve(config, facts, device_facts(platform, share)).limits
    flags = [f"--{name.replace('_', '-')}={_written(value).lower()}" for name, value in layout.items()]
    found = plan(str(folder), "--max-model-len=256", "--dtype=float32", *flags)["plan"]
    assert (found["num_blocks"], found["tile_pages"]) == (limits.num_blocks, limits.tile_pages)
    assert found["weight_bytes"] == facts.weight_bytes


@pytest.mark.parametrize(
    ("words", "least", "most"),
    [
        # Weights of a rank in GiB: the tower of 5.5 billion in bfloat16 is whole on each.
        (["/root/.cache/modelscope/hub/models/vllm-ascend/InternVL3_5-38B-w8a8/", "--devices", "4x64GiB", "-tp", "4",
          "--max-num-seqs", "32", *GUIDE], 10.3 + 32.8e9 / 4 / GIB, 10.3 + 10),
        (["vllm-ascend/InternVL3_5-241B-A28B-w8a8", "--devices", "16x64GiB", "-tp", "16", "--max-num-seqs", "16",
          "--enable-expert-parallel", *GUIDE], 10.3 + 235e9 / 16 / GIB, 10.3 + 16),
        (["OpenGVLab/InternVL3-8B", "--devices", "24GiB"], 14.7, 14.9),
        (["OpenGVLab/InternVL3-78B-AWQ", "--devices", "2x80GiB"], 10.3 + 72e9 / 4 / GIB, 32),
        (["OpenGVLab/InternVL3-1B", "--devices", "cpu:16GiB"], 1.7, 1.8),
    ],
)  # fmt: skip
def test_known_deployments_fit(plan, words, least, most):
    found = plan(*words)
    assert found["fits"]
    assert least < found["plan"]["weight_bytes"] / GIB < most
    assert found["plan"]["requests_at_once"] > 0
    for rank in found["plan"]["ranks"]:
        taken = ("weight_bytes", "activation_bytes", "graph_bytes", "tile_bytes", "kv_bytes", "left_bytes")
        assert sum(rank[name] for name in taken) == rank["allowance_bytes"]
        assert sum(rank["weights"].values()) == rank["weight_bytes"]


def test_the_command_is_the_line_that_was_given_with_its_layout(plan):
    found = plan("vllm-ascend/InternVL3_5-38B-w8a8", "--devices", "4x64GiB", "-tp=4", *GUIDE)
    assert found["serve"][0].startswith("tilewise serve vllm-ascend/InternVL3_5-38B-w8a8 --trust-remote-code ")
    assert found["serve"][0].endswith(" -tp 4")
    assert "--devices" not in found["serve"][0]
    written = plan("OpenGVLab/InternVL3-8B", "--devices", "24GiB", "--quantization", "w4a16")["serve"]
    assert written == [
        "tilewise quantize OpenGVLab/InternVL3-8B ./InternVL3-8B-w4a16 --scheme w4a16",
        "tilewise serve ./InternVL3-8B-w4a16",
    ]
    rounded = plan("InternVL3-8B", "--devices=24GiB", "--quantization=int8", "--max-model-len=auto")["serve"]
    assert rounded == ["tilewise serve OpenGVLab/InternVL3-8B --max-model-len auto --quantization int8"]


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if not member.flash])
def test_every_member_is_planned_for(plan, name):
    found = plan(f"OpenGVLab/{name}", "--devices", "600GiB", "--bandwidth", "2TB/s", "--tflops", "300")
    assert found["plan"]["first_token_seconds"] > found["plan"]["decode_step_seconds"] > 0


def test_no_network_is_needed(tmp_path):
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}
    words = ["plan", "OpenGVLab/InternVL3_5-241B-A28B", "--devices", "16x64GiB"]
    done = called(*words, **closed)
    assert done.returncode == 0, done.stderr
    assert "Recommended: " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_would_fit_does(plan):
    words = ("OpenGVLab/InternVL3-38B", "--devices", "2x24GiB")
    failed = plan(*words, status=1)
    assert not failed["fits"]
    assert failed["recommended"] is None
    changes = {found["change"]: found for found in failed["remedies"]}
    short = changes["--quantization w4a16 -tp 2"]
    assert not short["fits_as_asked"]
    smaller = ("--quantization", "w4a16", "--max-model-len", str(short["longest_context"]), "-tp", "2")
    assert plan(*words, *smaller)["fits"]
    longer = ("--quantization", "w4a16", "--max-model-len", str(short["longest_context"] + 16), "-tp", "2")
    assert not plan(*words, *longer, status=1)["fits"]
    more = next(change for change in changes if change.startswith("--devices 8x24GiB")).split()
    assert plan(words[0], *more)["fits"]
    memory = next(re.search(r"devices of (\d+) GiB, as (.*)", change) for change in changes if " GiB" in change)
    assert plan(words[0], "--devices", f"2x{memory[1]}GiB", *memory[2].split())["fits"]
    assert not plan(words[0], "--devices", f"2x{int(memory[1]) - 1}GiB", status=1)["fits"]


def test_a_shorter_context_and_smaller_keys_are_offered_where_they_help(plan):
    words = ("OpenGVLab/InternVL3-8B", "--devices", "18GiB", "-tp", "1")
    failed = plan(*words, status=1)
    changes = [found["change"] for found in failed["remedies"]]
    longest = failed["plan"]["longest_context"]
    assert changes[:2] == [f"--max-model-len {longest}", "--kv-cache-dtype int8"]
    assert plan(*words, "--max-model-len", str(longest))["fits"]
    smaller = plan(*words, "--kv-cache-dtype", "int8", "--max-model-len", str(longest + 1024))
    assert smaller["plan"]["longest_context"] == failed["remedies"][1]["longest_context"] > longest


def test_requests_are_what_blocks_hold(plan):
    found = plan("OpenGVLab/InternVL3-8B", "--devices", "24GiB", "--max-num-seqs", "256", "--pictures", "2")["plan"]
    blocks = -(-found["request"]["tokens"] // 16)
    assert found["request"]["tokens"] == 256 + 2 * (13 * 256 + 2) + 512
    assert found["requests_at_once"] == found["requests_held"] == (found["num_blocks"] - 1) // blocks
    assert found["most_pictures"] == (32768 - 256 - 512) // (13 * 256 + 2)


def test_stages_and_experts(plan):
    words = ("OpenGVLab/InternVL3_5-30B-A3B", "--devices", "4x24GiB")
    found = plan(*words)
    assert [layout["layout"] for layout in found["layouts"] if layout["fits"]] == [
        *("-tp 4 --enable-expert-parallel", "-tp 2 -pp 2 --enable-expert-parallel", "-pp 4"),
    ]
    assert found["recommended"] == "-tp 4 --enable-expert-parallel"
    stages = plan(*words, "-pp", "4")["plan"]["ranks"]
    assert [rank["weights"]["tower"] > 0 for rank in stages] == [True, False, False, False]
    assert [rank["weights"]["head"] > 2**20 for rank in stages] == [False, False, False, True]
    parts, whole = plan(*words, "-tp", "4"), plan(*words, "-tp", "4", "-ep")
    assert parts["plan"]["weight_bytes"] == whole["plan"]["weight_bytes"]
    assert whole["serve"] == ["tilewise serve OpenGVLab/InternVL3_5-30B-A3B -tp 4 --enable-expert-parallel"]
    uneven = plan("OpenGVLab/InternVL3_5-241B-A28B-w8a8", "--devices", "64x64GiB", "-tp", "64", "-ep")
    assert uneven["plan"]["ranks"][0]["weights"]["mlp"] == uneven["plan"]["ranks"][-1]["weights"]["mlp"]


def test_replicas_are_preferred_where_one_rank_holds_enough(plan):
    found = plan("OpenGVLab/InternVL3-2B", "--devices", "4xA100-80G", "--max-num-seqs", "16")
    assert found["recommended"] == "-dp 4"
    assert {layout["layout"] for layout in found["layouts"]} == {
        *("-dp 4", "-tp 2 -dp 2", "-tp 4", "-pp 2 -dp 2", "-pp 4", "-tp 2 -pp 2"),
    }
    assert found["layouts"][0]["requests_at_once"] == 4 * 16


def test_the_page_names_every_part(page):
    text = page("OpenGVLab/InternVL3-78B-AWQ", "--devices", "2xA100-80G")
    for line in ("vision tower", "embedding and head", "KV cache", "graphs", "no memory is kept for them", "It fits.",
                 "Longest context", "Requests at once", "First token", "* -tp 2", "Recommended: -tp 2, as",
                 "  $ tilewise serve OpenGVLab/InternVL3-78B-AWQ -tp 2"):  # fmt: skip
        assert line in text
    failed = page("OpenGVLab/InternVL3-78B", "--devices", "24GiB", status=1)
    assert "It does not fit: The weights take 14" in failed
    assert "What would, each by itself:" in failed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["InternVL3-8B", "--devices", "16x"], "--devices 16x: of what?"),
        (["InternVL3-8B", "--devices", "H10"], "Did you mean H100?"),
        (["InternVL3-8B", "--devices", "3xH100", "-tp", "3"], "the 28 attention heads.*use 1, 2 or 4"),
        (["InternVL3-8B", "--devices", "2xH100", "-tp", "4"], "are 4 devices, --devices has 2: lower one"),
        (["InternVL3-8B", "--devices", "H100", "--max-model-len", "100000"], "longer than the 32768 tokens.*lower"),
        (["InternVL3-8B", "--devices", "H100", "-q", "w4a8"], "Did you mean w8a8"),
        (["InternVL3-78B-AWQ", "--devices", "H100", "-q", "gptq"], "awq is what the model's name says"),
        (["InternVL3_5-GPT-OSS-20B-A4B-Preview", "-q", "w4a16"], "experts of a layer in one tensor.*use int8"),
        (["demo", "-q", "awq", "--devices", "2xcpu"], "this machine is one device"),
        (["demo", "--pictures", "-1"], "pictures must be 0 or above"),
        (["demo", "--pictures", "2", "--limit-mm-per-prompt", "image=1"], "more than the 1 that limit_mm"),
        (["InternVL3-8B", "--devices", "2xH100", "-tp", "2", "-ep"], "this model has none: leave it out"),
        (["demo", "-pp", "9"], "pipeline_parallel_size=9 is more than the 3 layers.*lower it"),
        (["demo", "-tp", "0"], "tensor_parallel_size must be above 0"),
        (["demo", "--device", "24GiB"], "device must be one of auto, cpu, cuda, npu, got '24GiB'"),
        (["demo", "--bandwith", "3"], "Did you mean --bandwidth"),
        (["one", "two"], "One model is served"),
        (["./no/such/folder"], "no such folder"),
        (["InternVL3-1B", "--devices", "24GiB", "--batch-invariant"], "batch_invariant is for CPUs"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(capsys, words, said):
    assert main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(said, err)


def test_a_mistake_costs_no_loading_of_torch():
    plan = "main(['plan', '--devices', '16x'])"
    code = f"import sys; from tilewise.cli import main; {plan}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "of what?" in done.stderr


def test_help_has_the_flags_of_planning(capsys):
    assert main(["plan", "--help"]) == 0
    assert "tilewise plan OpenGVLab/InternVL3-8B --devices 24GiB" in capsys.readouterr().out
    assert main(["plan", "--help=planning"]) == 0
    assert "--devices TEXT" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_this_machine_is_planned_for_the_device_that_was_asked_for(capsys):
    assert main(["plan", "demo", "--device", "cuda"]) == 2
    assert "device=cuda is not possible" in capsys.readouterr().err
