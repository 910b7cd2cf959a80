"""OpenVINO GenAI on its CPU plugin: VLMPipeline for one stream, ContinuousBatchingPipeline for several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import openvino
import openvino_genai
from benchmarks.peers.peer import Answer, Peer, Setup, file_of, run
from benchmarks.peers.work import Prompt

TOWER = "openvino_vision_embeddings_model.xml"
WEIGHTS = {"float32": "float32", "bfloat16": "float16 (it exports no bfloat16)", "int8": "int8 a channel"}


class OpenVino(Peer):
    def __init__(self, setup: Setup) -> None:
        file_of(setup, TOWER)
        self._setup = setup
        self._properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": setup.threads}
        self._batched = setup.streams > 1
        folder = str(setup.form)
        if self._batched:
            schedule = openvino_genai.SchedulerConfig()
            schedule.num_kv_blocks = setup.streams * setup.context // 16
            schedule.max_num_seqs = setup.streams
            schedule.max_num_batched_tokens = 2048
            schedule.enable_prefix_caching = False
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, schedule, "CPU", self._properties)
        else:
            self._pipeline = openvino_genai.VLMPipeline(folder, "CPU", **self._properties)

    def about(self) -> dict[str, str]:
        core = openvino.Core()
        arithmetic, cache, group = (
            core.get_property("CPU", name)
            for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        )
        return {
            "version": f"openvino {_release(openvino)}, openvino-genai {_release(openvino_genai)}",
            "computes": f"{WEIGHTS[self._setup.precision]} weights; the plugin's defaults on this CPU: arithmetic in "
            f"{_type(arithmetic)}, keys and values {_type(cache)}, groups of {group} where it quantises activations",
        }

    def answer(self, prompts: Sequence[Prompt], tokens: int) -> Answer:
        started = time.perf_counter()
        texts = [prompt.chat("<ov_genai_image_0>") for prompt in prompts]
        if self._batched:
            return self._answer_batched(prompts, texts, tokens, started)
        pictures = {"images": [_tensor(prompts[0])]} if prompts[0].picture else {}
        result = self._pipeline.generate(texts[0], generation_config=_greedy(tokens), **pictures)
        total = time.perf_counter() - started
        first = result.perf_metrics.get_ttft().mean / 1e3
        return Answer(min(first, total), total, result.perf_metrics.get_num_input_tokens())

    def _answer_batched(self, prompts: Sequence[Prompt], texts: list[str], tokens: int, started: float) -> Answer:
        configs = [_greedy(tokens)] * len(prompts)
        if any(prompt.picture for prompt in prompts):
            pictures = [[_tensor(prompt)] for prompt in prompts]
            self._pipeline.generate(texts, images=pictures, generation_config=configs)
        else:
            self._pipeline.generate(texts, configs)
        total = time.perf_counter() - started
        return Answer(total, total)

    def tile(self) -> float:
        pixels = np.random.default_rng(0).standard_normal((1, 3, 448, 448), np.float32)
        started = time.perf_counter()
        self._tower([pixels])
        return time.perf_counter() - started

    @cached_property
    def _tower(self) -> Any:
        properties = self._properties | {"PERFORMANCE_HINT": "LATENCY"}
        return openvino.Core().compile_model(str(self._setup.form / TOWER), "CPU", properties)


def _greedy(tokens: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = tokens
    config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
    return config


def _tensor(prompt: Prompt) -> Any:
    return openvino.Tensor(np.asarray(prompt.picture)[None])


def _release(module: Any) -> str:
    return str(module.__version__).partition("-")[0]


def _type(value: Any) -> str:
    return str(value.to_string() if hasattr(value, "to_string") else value)


if __name__ == "__main__":
    run(OpenVino)
