"""A target of fuzzing: what is tried with inputs of all kinds, and what may come of it.

A target takes bytes, of which there are some good ones to begin with (`of_bytes`), or values that a strategy of
hypothesis draws (`of_values`). The default suite tries each target a little (`test_fuzz.py`); `make fuzz` goes on for
as long as it is told to, led by coverage (`campaign.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tilewise.errors import TilewiseError

Check = Callable[[Any], object]
Seeds = Callable[[], Sequence[bytes]]
_MOST_TEXT = 20_000
"""Most characters of an error: it quotes what was wrong, and not all that was sent."""
_OBJECT = re.compile(r"\bobject at 0x[0-9a-f]{5,}")


@dataclass(frozen=True)
class Target:
    """A function that is tried with inputs. It returns when all is well, and lets every defect out as an exception."""

    name: str
    check: Check
    inputs: SearchStrategy[Any]
    seeds: Seeds | None = None
    """Function that makes files to begin with; None = inputs are drawn, and not bytes."""
    examples: int = 50
    """Inputs that the default suite tries."""

    def try_some(self) -> None:
        """Try a few inputs, the same ones each time."""
        every = list(HealthCheck)
        fixed = settings(max_examples=self.examples, derandomize=True, database=None, deadline=None,
                         suppress_health_check=every)  # fmt: skip
        for seed in self.seeds() if self.seeds else ():
            self.check(seed)
        fixed(given(self.inputs)(self._run))()

    def try_bytes(self, data: bytes) -> None:
        """Try one input as a fuzzer has it: bytes, or bytes from which a value is drawn."""
        if self.seeds:
            self._run(data)
        else:
            self._drawn(data)

    @cached_property
    def _drawn(self) -> Callable[[bytes], object]:
        without = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
        test = without(given(self.inputs)(self._run))
        found: Callable[[bytes], object] = test.hypothesis.fuzz_one_input  # type: ignore[attr-defined]
        return found

    def _run(self, value: Any) -> None:
        try:
            self.check(value)
        except BaseException as error:
            error.add_note(f"The target {self.name} was given {value!r:.2000}")
            raise


TARGETS: dict[str, Target] = {}
"""All targets by name; importing `tests.fuzz.all_targets` fills it."""


def of_bytes(seeds: Seeds, examples: int = 50) -> Callable[[Check], Check]:
    """Make a function a target of files, and of what becomes of these good ones when they are damaged."""
    made = cache(seeds)

    def add(check: Check) -> Check:
        inputs = st.binary(max_size=200) | st.deferred(lambda: damaged(made()))
        TARGETS[check.__name__] = Target(check.__name__, check, inputs, made, examples)
        return check

    return add


def of_values(inputs: SearchStrategy[Any], examples: int = 50) -> Callable[[Check], Check]:
    """Make a function a target of values that are drawn."""

    def add(check: Check) -> Check:
        TARGETS[check.__name__] = Target(check.__name__, check, inputs, examples=examples)
        return check

    return add


@contextmanager
def refusing(*kinds: type[TilewiseError]) -> Iterator[None]:
    """Allow these errors and no other. What one says can be sent as UTF-8, is short, and shows no object."""
    try:
        yield
    except kinds as error:
        text = str(error)
        text.encode()
        assert len(text) <= _MOST_TEXT, f"an error of {len(text)} characters"
        assert not _OBJECT.search(text), text


@st.composite
def damaged(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """Draw a good file with some bytes changed, a piece doubled, left out or replaced, and perhaps cut short."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 4))):
        place, length = draw(st.integers(0, len(data))), draw(st.integers(0, 16))
        piece = bytes(data[place : place + length])
        data[place : place + length] = draw(st.sampled_from([piece * 2, b"", b"\xff" * length, bytes(length)]))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


WORDS = st.text(max_size=8) | st.sampled_from(["", "\x00", "a" * 300, "é", "😀", "0", "-1", "NaN", "1" * 5000])
NUMBERS = (
    st.integers(-3, 20)
    | st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(2**63), 1e308, -1e308, 1e-320, 0.5, -0.0])
    | st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
"""Any values of JSON, those at the borders of types more often than chance would have it."""


@st.composite
def altered(draw: st.DrawFn, values: Sequence[Any], most: int = 3) -> Any:
    """Draw one of some JSON values, in which a few places hold something else, are left out, or are there twice."""
    value = json.loads(json.dumps(draw(st.sampled_from(values))))
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(value))
        if not places:
            return draw(JSON)
        holder, key = draw(st.sampled_from(places))
        how = draw(st.integers(0, 3))
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[draw(st.sampled_from(list(holder)) | WORDS)] = holder[key]
        else:
            holder[key] = draw(JSON)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place in a value, as what holds it and the key or index there."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
