"""The whole engine with device="cuda", on the card of the tests: what is where, and who waits for whom.

Answers are those of the CPU, no op meets tensors of host and card, and nothing asks the card for numbers between two
steps. torch's ops are tried with all that requests may ask for, and Triton's kernels, which the interpreter computes
slowly, in captured steps of a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.platforms.cuda.card import DEVICE, Event, Graph, Rules, installed
from tests.tiny import SPECS, TWINS, TinySpec, write_original
from tilewise import LLM, SamplingParams
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.run import quantize
from tilewise.runner.vision_workers import VisionTask
from tilewise.structured_outputs import StructuredOutputsParams

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def rules():
    with installed() as rules:
        yield rules


def on_card(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=DEVICE)


def on_host(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


# The card itself.

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a sum over both": (lambda: on_card(1, 2) + on_host(1, 2), RuntimeError, "same device"),
    "a product over both": (lambda: on_card(1, 2) @ on_host(1, 2), RuntimeError, "same device"),
    "a transposed matrix": (lambda: on_card(1, 2)[None].T + on_host(1, 2), RuntimeError, "same device"),
    "both in a row": (lambda: torch.cat([on_host(1, 2), on_card(1)]), RuntimeError, "same device"),
    "rows by places of the host": (lambda: on_card(1, 2).index_select(0, torch.tensor([1])), RuntimeError, "same"),
    "values of the host for places": (lambda: set_items(on_card(1, 2), on_host(3)), RuntimeError, "values are on"),
    "the host by places of the card": (lambda: on_host(1, 2)[on_card(1).long()], RuntimeError, "host is indexed"),
    "numpy": (lambda: on_card(1, 2).numpy(), TypeError, "numpy"),
    "a copy that nobody waits for": (lambda: on_card(1).to("cpu", non_blocking=True), RuntimeError, "nobody waits"),
}


def set_items(target: Tensor, value: Tensor) -> None:
    target[torch.tensor([0]).pin_memory().to(DEVICE, non_blocking=True)] = value


@pytest.mark.parametrize(("call", "kind", "said"), REFUSED.values(), ids=REFUSED)
def test_what_a_gpu_refuses_is_refused(rules: Rules, call: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()


WAITING: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "numbers": (Tensor.tolist, 1),
    "a truth value": (lambda x: bool(x.sum() > 0), 1),
    "a copy to the host": (Tensor.cpu, 1),
    "a copy of memory that is not pinned": (lambda x: on_host(1, 2).to(x.device), 1),
    "numbers of the host for an index": (lambda x: x[[0, 1]], 1),
    "truth values for an index": (lambda x: x[x > 1], 1),
    "values of the host for a row": (lambda x: x.__setitem__(slice(0, 2), on_host(1, 2)), 1),
    "unique numbers": (lambda x: x.unique(), 1),
    "repeated by a tensor": (lambda x: x.repeat_interleave(x.long()), 1),
    "a number of the host": (lambda x: x + torch.tensor(2.0), 0),
    "a slice": (lambda x: x[1:] * 2, 0),
    "places of the card": (lambda x: x[(x > 1).long()], 0),
    "pinned memory": (lambda x: on_host(1, 2).pin_memory().to(x.device, non_blocking=True), 0),
}


@pytest.mark.parametrize(("call", "waits"), WAITING.values(), ids=WAITING)
def test_what_makes_the_host_wait_is_noted(rules: Rules, call: Any, waits: int) -> None:
    x = on_card(1, 2)
    rules.waits.clear()
    call(x)
    assert len(rules.waits) == waits


def test_a_copy_to_the_host_arrives_with_its_event_and_not_before(rules: Rules) -> None:
    x, kept, event = on_card(1, 2), torch.empty(2, pin_memory=True), Event()
    kept.copy_(x, non_blocking=True)
    event.record()
    x += 1
    assert kept.isnan().all()
    event.synchronize()
    assert kept.tolist() == [1, 2]


def test_a_graph_computes_nothing_before_its_replay_and_then_what_its_tensors_hold(rules: Rules) -> None:
    x, graph = on_card(1, 2), Graph()
    with rules.capture(graph):
        doubled = (x * 2).view(1, 2)
        doubled[0, 0] += 1
    with torch._C.DisableTorchFunction():
        assert doubled.isnan().all()
    x.copy_(on_card(5, 6))
    for _ in range(2):
        graph.replay()
        assert doubled.tolist() == [[11, 12]]
    for call in (x.tolist, lambda: on_host(1).to(DEVICE), lambda: torch.empty(2, pin_memory=True).copy_(x, True)):
        with pytest.raises(RuntimeError, match="captured"), rules.capture(Graph()):
            call()


# The engine on it.

OPTIONS: dict[str, Any] = {"max_model_len": 512, "dtype": "float32", "max_num_seqs": 4, "max_logprobs": -1}
AB = StructuredOutputsParams(regex="[ab]{3,5}")
OBJECT = StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
GREEDY = SamplingParams(temperature=0, max_tokens=6, logprobs=3)
SAMPLING = {
    "greedy": GREEDY,
    "drawn": SamplingParams(temperature=0.9, top_k=30, top_p=0.9, min_p=0.01, seed=3, max_tokens=6),
    "many": SamplingParams(temperature=1.0, n=3, seed=5, max_tokens=4),
    "penalties": SamplingParams(
        temperature=0, presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.2, max_tokens=8, min_tokens=4
    ),
    "tokens": SamplingParams(temperature=0, logit_bias={5: 3.0}, allowed_token_ids=list(range(5, 90)), bad_words=["a"]),
    "scores of the prompt": SamplingParams(temperature=0, prompt_logprobs=2, max_tokens=3),
    "scores of all": SamplingParams(temperature=0, logprobs=-1, max_tokens=2),
    "scores of some": SamplingParams(temperature=0, logprob_token_ids=[4, 5, 6], max_tokens=2),
    "a form": SamplingParams(temperature=0, max_tokens=12, structured_outputs=OBJECT),
    "a pattern": SamplingParams(temperature=0.7, seed=1, max_tokens=12, structured_outputs=AB),
}


def picture(seed: int, width: int, height: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return {"type": "image_pil", "image_pil": Image.fromarray(pixels)}


def said(*parts: str | dict[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


TALKS = [
    said("hi there"),
    said(picture(0, 120, 60), "what"),
    said(picture(0, 120, 60), picture(1, 50, 140), "both"),
    said("a b c " * 20),
]


def answers(model: Path, device: str, talks: list[Any], sampling: list[SamplingParams], **options: Any) -> list[Any]:
    """Tokens of every answer. On a card, the engine waits for it only while it loads, and where `draw.py` may."""
    with LLM(str(model), device=device, **OPTIONS | options) as llm:
        if device == "cuda":
            Rules.entered.waits.clear()
        results = [one for params in sampling for one in llm.chat(talks, params, use_tqdm=False)]
    return [[tuple(answer.token_ids) for answer in one.outputs] for one in results]


@pytest.fixture
def torch_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWISE_CUDA_KERNELS", "0")


def check(model: Path, sampling: list[SamplingParams], *may_wait: str, **options: Any) -> None:
    """Answers on the card are those of the CPU, and nothing has waited but what is named."""
    expected = answers(model, "cpu", TALKS, sampling, **options)
    with installed() as rules:
        assert answers(model, "cuda", TALKS, sampling, **options) == expected
    assert not [wait for wait in rules.waits if not any(one in wait for one in may_wait)]


LONG_TAIL = "_draw_truncated"
"""torch's top-p sorts whole rows only where that is needed, and asks the device for which."""
EXPERTS = "platforms/ops.py"
"""torch's op asks which experts were chosen; the kernel does not."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("model"), SPECS["qwen2-300m"])


@pytest.mark.usefixtures("torch_ops")
def test_all_that_a_request_may_ask_for(model: Path) -> None:
    check(model, list(SAMPLING.values()), LONG_TAIL)


MODELS = {**{name: SPECS[name] for name in SPECS if name != "qwen2-300m"}, "flash": TWINS["InternVL3_5-1B-Flash"]}


@pytest.mark.usefixtures("torch_ops")
@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_all_kinds_of_models(spec: TinySpec, tmp_path: Path) -> None:
    check(write_original(tmp_path / "model", spec), [GREEDY], EXPERTS)


WAYS: dict[str, dict[str, Any]] = {
    "cache of int8": {"kv_cache_dtype": "int8"},
    "cache of fp8": {"kv_cache_dtype": "fp8"},
    "guesses by lookup": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
    "one step after the other": {"async_scheduling": False},
    "checked numbers": {"check_numerics": True},
    "no prefixes": {"enable_prefix_caching": False},
    "small steps": {"max_num_batched_tokens": 32},
    "weights of int8": {"quantization": "int8"},
    "weights of fp8": {"quantization": "fp8"},
    "random weights": {"load_format": "dummy"},
}


@pytest.mark.usefixtures("torch_ops")
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_all_ways_to_run(model: Path, options: dict[str, Any]) -> None:
    check(model, [GREEDY, SAMPLING["a form"]], "forms.py", **options)


@pytest.mark.usefixtures("torch_ops")
def test_a_draft_model(model: Path) -> None:
    draft = {"model": str(model), "num_speculative_tokens": 2}
    check(model, [GREEDY, SAMPLING["drawn"]], LONG_TAIL, speculative_config=draft)


@pytest.mark.usefixtures("torch_ops")
def test_tiles_that_are_kept_on_disk(model: Path, tmp_path: Path) -> None:
    """The second engine reads what the first has written."""
    for _ in range(2):
        check(model, [GREEDY], encoder_cache_dir=str(tmp_path))


@pytest.mark.usefixtures("torch_ops")
def test_tiles_that_other_processes_encode(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(config: Any, *rest: Any) -> VisionTask:
        return VisionTask(replace(config, device="cpu"), *rest)

    monkeypatch.setattr("tilewise.runner.build.VisionTask", on_cpu)
    check(model, [GREEDY], vision_workers=1)


SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "w4a16": ("qwen2-300m", {"scheme": "w4a16", "vision": True}),
    "experts of w8a16": ("qwen3moe-300m-head", {"scheme": "w8a16"}),
    "fp8": ("internlm2-300m", {"scheme": "fp8"}),
    "w8a8": ("qwen2-300m", {"scheme": "w8a8", "vision": True}),
    "w8a8, static": ("internlm2-300m", {"scheme": "w8a8-static", "format": "modelslim", "vision": True}),
}


@pytest.mark.usefixtures("torch_ops")
@pytest.mark.parametrize(("spec", "options"), SCHEMES.values(), ids=SCHEMES)
def test_quantised_checkpoints(spec: str, options: dict[str, Any], tmp_path: Path) -> None:
    source, out = write_original(tmp_path / "source", SPECS[spec]), tmp_path / "out"
    quantize(QuantizeOptions(model=str(source), out=str(out), **options), show=False)
    check(out, [GREEDY], "forms.py", EXPERTS)


FEW: dict[str, Any] = {"lazy_graphs": True, "max_num_seqs": 1, "max_model_len": 256}
SHORT = replace(GREEDY, max_tokens=3)


def check_kernels(model: Path, talks: list[Any], *sampling: SamplingParams, **options: Any) -> Rules:
    expected = answers(model, "cpu", talks, [*sampling], **FEW | options)
    with installed() as rules:
        assert answers(model, "cuda", talks, [*sampling], **FEW | options) == expected
    assert sum(graph.replays for graph in rules.graphs) > 1 or options.get("enforce_eager")
    assert not [wait for wait in rules.waits if "kernels/experts.py" not in wait]  # a table, when it is first asked for
    return rules


LAUNCHES = {"qwen2-300m": 24, "qwen3-6b-tied": 24, "qwen3moe-300m-head": 30, "gptoss-300m-head": 29}
"""Kernels of a step of two layers. One more is some microseconds; a step of a small model has a few hundred."""


def test_kernels_in_captured_steps(model: Path) -> None:
    (step,) = check_kernels(model, [said("hi")], SHORT).graphs
    assert len(step.launches) == LAUNCHES["qwen2-300m"], step.launches


def test_kernels_are_not_compiled_anew_for_steps_of_other_lengths(tmp_path: Path) -> None:
    """Widths are those of real models as far as it matters here: rows begin at multiples of 16 bytes."""
    spec = replace(SPECS["qwen3-300m-head"], hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=64)
    model, short = write_original(tmp_path / "model", spec), replace(SAMPLING["drawn"], max_tokens=2)
    with installed() as rules, LLM(str(model), device="cuda", **OPTIONS | {"enforce_eager": True}) as llm:
        for lengths in ([3], [7, 4], [5, 9, 2], [1, 6, 2, 3]):
            prompts = [{"prompt_token_ids": list(range(5, 5 + length))} for length in lengths]
            llm.generate(prompts, short, use_tqdm=False)
    assert [argument for argument, aligned in rules.alignments.items() if len(aligned) > 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "int8"}, {"enforce_eager": True}], ids=str)
def test_kernels_for_tiles_and_choices(model: Path, options: dict[str, Any]) -> None:
    check_kernels(model, [said("hi"), said(picture(0, 50, 50), "what")], SHORT, SAMPLING["drawn"], **options)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["qwen3moe-300m-head", "gptoss-300m-head", "qwen3-6b-tied"])
def test_kernels_of_other_models(spec: str, tmp_path: Path) -> None:
    (step,) = check_kernels(write_original(tmp_path / "model", SPECS[spec]), [said("hi")], SHORT).graphs
    assert len(step.launches) == LAUNCHES[spec], step.launches


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "options"), SCHEMES.values(), ids=SCHEMES)
def test_kernels_of_quantised_checkpoints(spec: str, options: dict[str, Any], tmp_path: Path) -> None:
    source, out = write_original(tmp_path / "source", SPECS[spec]), tmp_path / "out"
    quantize(QuantizeOptions(model=str(source), out=str(out), **options), show=False)
    check_kernels(out, [said("hi")], SHORT)
