"""One target under coverage-guided fuzzing, in a process of its own: `python -m tests.fuzz.campaign NAME ...`.

Inputs that show something new are kept in a corpus, which the next campaign goes on from. What a target lets out is
noted once for each place that it comes from, and the campaign goes on; only what ends the process (a crash, too much
memory, too much time for one input) ends the campaign, and is begun again by `__main__.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import random
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.fuzz.target import TARGETS, Target

INPUT_SECONDS, MEMORY_MIB = 25, 2560
"""Most that one input may take."""
_LONGEST = 16_384  # bytes of an input
_INSTRUMENTED = ("tilewise", "PIL")
"""Packages whose branches lead the fuzzer; compiled libraries are not among them."""
_OURS = ("src/tilewise/", "tests/fuzz/")


@dataclass
class Findings:
    """The inputs that let something out of a target, one for each place in the code: the shortest that was met."""

    folder: Path
    target: Target
    shortest: dict[str, int] = field(default_factory=dict)

    def try_input(self, data: bytes) -> None:
        """Try an input; note what comes out."""
        try:
            self.target.try_bytes(data)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # panics of libraries in Rust are no Exception
            self._note(error, data)

    def _note(self, error: BaseException, data: bytes) -> None:
        place = _place(error)
        if len(data) >= self.shortest.get(place, _LONGEST + 1):
            return
        self.shortest[place] = len(data)
        name = f"{self.target.name}-{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}"
        (self.folder / name).write_bytes(data)
        report = f"{place}\n\n{''.join(traceback.format_exception(error))}"
        (self.folder / f"{name}.txt").write_text(report, encoding="utf-8", errors="backslashreplace")


def _place(error: BaseException) -> str:
    """Return kind and place of an error: the innermost line that is ours, and so the same for all inputs like it."""
    here, step = "outside", error.__traceback__
    while step is not None:
        here, step = _line(step) or here, step.tb_next
    return f"{type(error).__name__} at {here}"


def _line(step: TracebackType) -> str | None:
    name = step.tb_frame.f_code.co_filename
    ours = next((name[name.index(part) :] for part in _OURS if part in name), None)
    return None if ours is None or "target.py" in ours else f"{ours}:{step.tb_lineno}"


def arguments_of(target: Target, seconds: int, folder: Path) -> Sequence[str]:
    """Return the arguments of libFuzzer, and write what a target begins with."""
    corpus, seeds = folder / "corpus" / target.name, folder / "seeds" / target.name
    for path in (corpus, seeds):
        path.mkdir(parents=True, exist_ok=True)
    # Values are drawn from bytes, of which short ones give none.
    drawn = [random.Random(number).randbytes(64 * number) for number in range(1, 17)]
    for number, seed in enumerate(target.seeds() if target.seeds else drawn):
        (seeds / f"{number:03d}").write_bytes(seed)
    limits = (
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={_LONGEST}",
        "-detect_leaks=0",
        f"-report_slow_units={INPUT_SECONDS}",
    )
    return [target.name, f"-max_total_time={seconds}", f"-artifact_prefix={folder}/{target.name}-", *limits,
            "-len_control=0", "-print_final_stats=1", str(corpus), str(seeds)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("module")
    parser.add_argument("seconds", type=int)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    import atheris

    logging.getLogger("tilewise").setLevel(logging.ERROR)
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        importlib.import_module(asked.module)
    target = TARGETS[asked.target]
    findings = Findings(asked.folder, target)
    atheris.Setup(arguments_of(target, asked.seconds, asked.folder), findings.try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
