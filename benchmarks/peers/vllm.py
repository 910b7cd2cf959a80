"""vLLM's CPU build, in this process, eager: on a CPU its compilation costs minutes at the start and brings little."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.peer import Answer, Lacks, Peer, Setup, run
from benchmarks.peers.work import Prompt

CACHE_GIB = "1"
"""For keys and values. Whole numbers only; the smallest is enough for any row of a model of 1B."""


class Vllm(Peer):
    def __init__(self, setup: Setup) -> None:
        if setup.precision == "int8":
            raise Lacks("reads int8 checkpoints, does not make one of a float checkpoint as it loads")
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = CACHE_GIB
        cores = sorted(os.sched_getaffinity(0))[: setup.threads]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        self._vllm = vllm
        self._setup = setup
        self._llm = vllm.LLM(
            str(setup.form),
            dtype=setup.precision,
            max_model_len=setup.context,
            max_num_seqs=setup.streams,
            limit_mm_per_prompt={"image": 1, "video": 0},
            enforce_eager=True,
            disable_log_stats=False,  # which notes the time of the first token
        )

    def about(self) -> dict[str, str]:
        return {"version": f"vllm {self._vllm.__version__}", "computes": self._setup.precision}

    def answer(self, prompts: Sequence[Prompt], tokens: int) -> Answer:
        started = time.perf_counter()
        params = self._vllm.SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
        outputs = self._llm.generate([_asked(prompt) for prompt in prompts], params, use_tqdm=False)
        total = time.perf_counter() - started
        first = min(float(output.metrics.first_token_latency) for output in outputs)
        return Answer(first, total, len(outputs[0].prompt_token_ids))


def _asked(prompt: Prompt) -> dict[str, Any]:
    media = {"multi_modal_data": {"image": prompt.picture}} if prompt.picture else {}
    return {"prompt": prompt.chat("<IMG_CONTEXT>"), **media}


if __name__ == "__main__":
    run(Vllm)
