"""Names in a request that no table has: taken and named, unless they were meant to be others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tilewise.errors import InvalidField, did_you_mean
from tilewise.ignored import Ignored, is_near_miss, other_spelling

MAX_UNKNOWN = 64
"""Different unknown names of a request; each is compared with all known ones, which takes time."""
_WHY = "no such field is known here"


@dataclass(frozen=True)
class UnknownFields:
    """What becomes of the unknown names of one request."""

    ignored: Ignored
    strict: bool = False
    """`--strict-fields`: all are refused."""

    def take(self, path: str, known: Collection[str], where: str, param: str | None = None) -> None:
        """Name `path`, such as `messages.id`, as ignored; `where` has fields of the names `known`, this one not.

        Raises InvalidField, naming `param`, such as `messages[3].id`, or the path: for a name that is nearly a known
        one, for one too many, and for every one when strict.
        """
        if path in self.ignored.reasons and not self.strict:
            return
        name = path.rpartition(".")[2][:80]
        if self.strict or is_near_miss(name, known):
            raise self.refusal(path, known, where, param)
        if len(self.ignored.reasons) >= MAX_UNKNOWN:
            raise InvalidField(
                (param or path)[:80],
                f"The request has more than {MAX_UNKNOWN} names that are not known, {path[:80]!r} is one: "
                "leave them out."
            )  # fmt: skip
        self.ignored.add(path, _WHY)

    def refusal(self, path: str, known: Collection[str], where: str, param: str | None = None) -> InvalidField:
        name = path.rpartition(".")[2][:80]
        meant = other_spelling(name, known)
        hint = f" Did you mean {meant}?" if meant else did_you_mean(name, known)
        rest = "Leave it out otherwise." if hint else "Leave it out."
        return InvalidField((param or path)[:80], f"{where} has no field {name!r}.{hint} {rest}")

    def take_all(self, prefix: str, names: Iterable[str], known: Collection[str], where: str) -> None:
        """Take those of `names` that are not known, each as `prefix.name`."""
        for name in names:
            if name not in known:
                self.take(f"{prefix}.{name}", known, where, f"{where}.{name}")
