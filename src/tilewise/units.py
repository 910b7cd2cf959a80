"""Amounts as people write them: `40K` tokens, `1.5 GiB`."""

from __future__ import annotations

import re
from typing import Any

GIB = 2**30
_FACTORS = {f"{letter}{end}": base**power for power, pair in enumerate(("kK", "mM", "gG", "tT"), 1)
            for letter, end, base in ((pair[0], "", 1000), (pair[1], "", 1024))}  # fmt: skip
_AMOUNT = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)([kKmMgGtT]?)")


def read_amount(text: str) -> int:
    """Read a whole number, with vLLM's letters: k, m, g, t are powers of 1000, K, M, G, T those of 1024.

    >>> read_amount("40K"), read_amount("25.6k")
    (40960, 25600)

    Raises ValueError for anything else, fractions of powers of 1024 among it.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or ("." in found[1] and not found[2].islower()):
        raise ValueError(f"must be a whole number, or one such as 40K (of 1024) or 25.6k (of 1000), got {text!r}")
    return round(float(found[1]) * _FACTORS[found[2]]) if found[2] else int(found[1])


def read_length(text: str) -> int:
    """Read an amount of tokens; "auto" and -1 stand for as many as fit, and give -1."""
    return -1 if text.strip() in ("auto", "-1") else read_amount(text)


def in_bytes(count: int) -> str:
    """Write a number of bytes as people read it.

    >>> in_bytes(1_876_400_000), in_bytes(700)
    ('1.75 GiB', '700 bytes')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return f"{count} bytes"


def to_python(value: Any) -> Any:
    """Return scalars of numpy and torch as Python's own numbers, their arrays as lists, and anything else as it is.

    Neither library is imported for it.
    """
    convert = getattr(value, "tolist", None)
    return convert() if callable(convert) else value
