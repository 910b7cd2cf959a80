"""One start of the engine, in a process of its own, up to its first answer: `python -m tilewise.bench.start_once JSON`.

Its argument is the engine's options, its last line the seconds of each part.
"""

from __future__ import annotations

import json
import sys
import time


def start(options: dict[str, object]) -> dict[str, float]:
    """Start an engine, and return the seconds of each part, one after the other."""
    moments = [time.perf_counter()]
    from tilewise.entrypoints.llm import LLM
    from tilewise.platforms import current_platform
    from tilewise.sampling_params import SamplingParams

    moments.append(time.perf_counter())
    current_platform().ops()  # builds the kernels of this CPU where that has not been done
    moments.append(time.perf_counter())
    llm = LLM(**options)  # type: ignore[arg-type]
    moments.append(time.perf_counter())
    llm.generate("Hello", SamplingParams(max_tokens=1), use_tqdm=False)
    moments.append(time.perf_counter())
    llm.close()
    names = ("import", "compilation", "engine", "first_answer")
    return {name: later - earlier for name, earlier, later in zip(names, moments, moments[1:], strict=False)}


if __name__ == "__main__":
    print(json.dumps(start(json.loads(sys.argv[1]))))
