"""Flags of vLLM's benchmarks that are refused, or have no effect: each says why, none is taken in silence."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewise.bench.dataset_options import NOT_DOWNLOADED
from tilewise.cli.flags.flag import BadUsage, Flag
from tilewise.cli.flags.parse import CommandLine
from tilewise.ignored import LOG

_ACCEPTED = {
    "tokenizer-mode": ("auto", "hf", "slow", "fast"),
    "num-warmups": ("0",),
    "random-batch-size": ("1",),
    "lora-assignment": ("random",),
}
"""Values of these flags that are accepted, since they ask for what happens anyway."""


@dataclass(frozen=True)
class RefusedFlags:
    """Flags of one of vLLM's benchmarks that are refused, and those that are taken and change nothing, with reasons."""

    refused: dict[str, str]
    taken: dict[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> tuple[Flag, ...]:
        return tuple(
            Flag(name.replace("-", "_"), tuple[str, ...], "", why, bare=(), alias=f"no-{name}")
            for name, why in (self.refused | self.taken).items()
        )

    def take_from(self, line: CommandLine) -> None:
        """Take these flags out of a line. Raises BadUsage for a refused one, but for values that ask for what is so."""
        for name, why in (self.refused | self.taken).items():
            values, accepted = line.values.pop(name.replace("-", "_"), None), _ACCEPTED.get(name, ())
            if values is None:
                continue
            if name in self.taken:
                if accepted and not set(values) <= set(accepted):
                    raise BadUsage(f"--{name} must be one of {', '.join(accepted)}, got {' '.join(values)!r}: {why}.")
                LOG.take({f"--{name}": why}, "command line")
            elif len(values) != 1 or values[0] not in accepted:
                raise BadUsage(f"--{name} is refused: {why}.")


_NO_ADAPTERS = "there are no LoRA adapters"
_NO_PROFILER = "the server has no profiler that a request could start"
_TRACES = "it belongs to the data set timed_trace, which is not there"
_FETCHED = (
    *("hf-subset", "hf-split", "hf-name", "hf-output-len", "blazedit-min-distance", "blazedit-max-distance"),
    *("spec-bench-category", "spec-bench-output-len", "speed-bench-category", "speed-bench-dataset-subset"),
    *("speed-bench-output-len", "bfcl-categories", "sonnet-input-len", "sonnet-output-len", "sonnet-prefix-len"),
)
_TRACED = ("chunk-hash-size", "label-hash-ids", "label-input-length", "label-output-length", "label-timestamp")
_OTHER_DATA = {
    **dict.fromkeys(_FETCHED, NOT_DOWNLOADED),
    **dict.fromkeys((f"timed-trace-{name}" for name in (*_TRACED, "sec-multiplier")), _TRACES),
    **dict.fromkeys(("asr-min-audio-len-sec", "asr-max-audio-len-sec"), "InternVL hears nothing"),
    "no-reranker": "InternVL does not rank",
    "random-batch-size": "it is for embeddings, which InternVL has none of",
}
_CLIENT_SIDE = {"custom-ensure-client-side-data": "a file is read on this side, and its pictures with it"}
OF_SERVE = RefusedFlags(
    refused={
        "use-beam-search": "/v1/completions has no beam search; `tilewise bench latency` has",
        "profile": _NO_PROFILER,
        "lora-modules": _NO_ADAPTERS,
        "lora-assignment": _NO_ADAPTERS,
        "lora-path": _NO_ADAPTERS,
        "max-loras": _NO_ADAPTERS,
        "probe-request-rate": "run a second benchmark beside the first, with --request-rate",
        "self-timed": _TRACES,
        "plot-timeline": "--plot FILE.png draws latency against load; --save-detailed has every moment",
        "timeline-itl-thresholds": "it is for --plot-timeline, which is not there",
        "plot-dataset-stats": "--save-detailed has the lengths",
        "no-stream": "answers are streamed, which is how the time to the first token is measured",
        **_OTHER_DATA,
        "chat-template-kwargs": "send them with --extra-body '{\"chat_template_kwargs\": {...}}' to --backend "
        "openai-chat",
        "enable-multimodal-chat": "--backend openai-chat is what sends conversations",
    },
    taken={
        "trust-remote-code": "code of a checkpoint is never run, nor is it needed",
        "tokenizer-mode": "there is one reader of each model's tokenizer",
        **_CLIENT_SIDE,
    },
)
_OTHER = "this is one engine: run the other's own benchmark for it"
OF_ENGINE = RefusedFlags(
    refused={
        "profile": _NO_PROFILER,
        "disable-detokenize": "text is made while the engine computes, and answers have it",
    }
)
OF_THROUGHPUT = RefusedFlags(
    refused={
        **OF_ENGINE.refused,
        "async-engine": "the engine is driven by this process; `tilewise bench serve` measures a server",
        "lora-path": _NO_ADAPTERS,
        "lora-assignment": _NO_ADAPTERS,
        "hf-max-batch-size": _OTHER,
        "hf-enable-torch-compile": _OTHER,
        "num-warmups": "run it twice, the second time with the caches as the first left them; use 0",
        "enable-multimodal-chat": "--backend vllm-chat is what makes conversations",
        "dataset": "write --dataset-name sharegpt --dataset-path FILE",
        **_OTHER_DATA,
    },
    taken={
        "no-stream": "nothing is streamed",
        "prequeue-requests": "everything is asked at once, before the first step",
        "disable-frontend-multiprocessing": "the engine is in this process",
        **_CLIENT_SIDE,
    },
)
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
