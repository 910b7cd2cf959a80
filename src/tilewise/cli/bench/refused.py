"""Flags of vLLM's benchmarks that are refused: each says why, none is taken in silence."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

_NO_ADAPTERS = "there are no LoRA adapters"
_NO_PROFILER = "the server has no profiler that a request could start"
_NOT_DOWNLOADED = "data sets are not downloaded: save one as JSON lines, for --dataset-name custom or custom_mm"
_TRACES = "it belongs to the data set timed_trace, which is not there"
OF_SERVE = {
    "use-beam-search": "/v1/completions has no beam search; `tilewise bench latency` has",
    "profile": _NO_PROFILER,
    "lora-modules": _NO_ADAPTERS,
    "lora-assignment": _NO_ADAPTERS,
    "lora-path": _NO_ADAPTERS,
    "max-loras": _NO_ADAPTERS,
    "random-batch-size": "it is for embeddings, which InternVL has none of",
    "probe-request-rate": "run a second benchmark beside the first, with --request-rate",
    "self-timed": _TRACES,
    "plot-timeline": "--plot FILE.png draws latency against load; --save-detailed has every moment",
    "timeline-itl-thresholds": "it is for --plot-timeline, which is not there",
    "plot-dataset-stats": "--save-detailed has the lengths",
    "trust-remote-code": "code of a checkpoint is never run",
    "tokenizer-mode": "there is one kind of tokenizer, read from the model's files",
    **dict.fromkeys(("hf-subset", "hf-split", "hf-name", "hf-output-len"), _NOT_DOWNLOADED),
    "chat-template-kwargs": "send them with --extra-body '{\"chat_template_kwargs\": {...}}' to --backend openai-chat",
    "enable-multimodal-chat": "--backend openai-chat is what sends conversations",
}
_OTHER = "this is one engine: run the other's own benchmark for it"
OF_ENGINE = {
    "profile": _NO_PROFILER,
    "disable-detokenize": "text is made while the engine computes, and answers have it",
}
OF_THROUGHPUT = {
    **OF_ENGINE,
    "async-engine": "the engine is driven by this process; `tilewise bench serve` measures a server",
    "lora-path": _NO_ADAPTERS,
    "hf-max-batch-size": _OTHER,
}
_FAR = ("hf", "sonnet", "burstgpt", "spec_bench", "speed_bench", "custom_audio", "timed_trace")
DATA_SETS = {**dict.fromkeys(_FAR, _NOT_DOWNLOADED), "random-rerank": "InternVL does not rank"}
_OTHER_TASKS = ("openai-audio", "openai-embeddings", "openai-embeddings-chat", "vllm-pooling", "vllm-rerank")
_OTHER_APIS = (
    "tgi",
    "lmdeploy",
    "deepspeed-mii",
    "tensorrt-llm",
    "scalellm",
    "sglang",
    "llama.cpp",
    "openai-responses",
)
BACKENDS = {
    **dict.fromkeys(_OTHER_TASKS, "InternVL answers chats and completions: openai, vllm or openai-chat"),
    **dict.fromkeys(_OTHER_APIS, "OpenAI's completions and chats are spoken: openai, vllm or openai-chat"),
}
ENGINES = dict.fromkeys(("hf", "mii"), _OTHER)


def add_refused(parser: argparse.ArgumentParser, flags: Mapping[str, str]) -> None:
    for name, why in flags.items():
        parser.add_argument(f"--{name}", nargs="*", action=_Refused, why=why, help=argparse.SUPPRESS)


class _Refused(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, why: str, **options: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, **options)
        self._why = why

    def __call__(self, parser: argparse.ArgumentParser, _space: Any, _values: Any, option: str | None = None) -> None:
        parser.error(f"{option} is refused: {self._why}.")


class Known:
    """A type for argparse: one of these names; for others that vLLM has, why not."""

    def __init__(self, names: tuple[str, ...], refused: Mapping[str, str]) -> None:
        self._names, self._refused = names, refused

    def __call__(self, text: str) -> str:
        if text in self._refused:
            raise argparse.ArgumentTypeError(f"{text!r} is refused: {self._refused[text]}")
        if text not in self._names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(self._names)}")
        return text
