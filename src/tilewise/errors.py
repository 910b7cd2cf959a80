"""Typed errors. Each names the value that was wrong, the limit it met and the remedy.

`http_status` is what a server answers with; raising one of these never costs more than its own request.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal

GET_AGAIN = "fetch the file again, or write it again if it is your own"
"""The remedy for a damaged file, wherever it came from."""


class TilewiseError(Exception):
    """Base of every error that Tilewise raises on purpose."""

    http_status = 500

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all attributes, for another process; by default an exception is made again from its message alone."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[TilewiseError], arguments: tuple[Any, ...], known: dict[str, Any]) -> TilewiseError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(known)
    return error


class InvalidRequest(TilewiseError, ValueError):
    """A request asks for something that is wrong in itself; sending it again will not help."""

    http_status = 400


class InvalidMedia(InvalidRequest):
    """A picture or video cannot be read, or lies outside the limits."""

    param: str | None = None
    """The place in the request, as `messages[0].content[2]`; None = somewhere."""

    def at(self, where: str) -> InvalidMedia:
        """Return this error with the place of the medium that it is about."""
        error = InvalidMedia(f"{where}: {self}")
        error.param = where
        return error


class InvalidField(InvalidRequest):
    """One field of a request is wrong; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class TooLong(InvalidRequest):
    """A prompt, or prompt and answer together, does not fit in the context."""

    def __init__(self, message: str, *, prompt_tokens: int, limit: int, output_tokens: int = 1) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.limit = limit
        """Tokens that prompt and answer may have together."""
        self.output_tokens = output_tokens
        """Tokens of the answer that were asked for; at least one has to fit."""


class UnknownOption(InvalidRequest, TypeError):
    """A keyword that does not exist; the message offers the nearest one that does."""

    @classmethod
    def named(cls, name: str, known: Iterable[str], where: str) -> UnknownOption:
        return cls(f"{where} has no option {name!r}.{did_you_mean(name, known)}")


class NotSupported(InvalidRequest, NotImplementedError):
    """A call that vLLM has and that is not there; the message says what to do instead."""


class InvalidConfig(TilewiseError, ValueError):
    """The engine cannot start with these options on this machine."""


class InvalidCheckpoint(TilewiseError):
    """A checkpoint's files do not say what they have to."""


class BrokenAnswer(TilewiseError):
    """A structured answer could not be followed to its end. Its form was tried before, so the request is at fault."""

    http_status = 400


class NotFinite(TilewiseError):
    """Numbers of one request became NaN or infinite, so that its answer would mean nothing. Others are not affected."""

    def __init__(self, part: Literal["tower", "decoder"], message: str) -> None:
        super().__init__(
            f"{message}: some weights may be damaged (fetch the files again), or activations are too large for the "
            "dtype (try --dtype float32, or bfloat16 in place of float16)."
        )
        self.part: Literal["tower", "decoder"] = part
        """Part of the model whose numbers they are."""


class EngineStuck(TilewiseError):
    """An invariant of the engine itself is broken: a defect of Tilewise."""


class RankDied(TilewiseError):
    """A process that has a part of the model is not there any more, so that nothing more can be computed."""


class EngineDead(TilewiseError):
    """The engine's process has ended; a new one is on its way, and a request sent again later will be answered."""

    http_status = 503


class Cancelled(TilewiseError):
    """Whoever sent the request has left; there is nobody to answer."""

    http_status = 499


class Overloaded(TilewiseError):
    """More requests wait than are allowed to; sending it again later will help."""

    http_status = 429


class Expired(TilewiseError):
    """A request took longer than its deadline."""

    http_status = 504


class UnknownModel(TilewiseError):
    """A model is neither a folder nor an id, or a revision, that the hub knows."""

    http_status = 404


class DownloadFailed(TilewiseError):
    """The hub may have the model, but its files cannot be had now: no access, no network, no space, wrong bytes."""

    http_status = 503


class Unfinished(TilewiseError):
    """A batch run ended before its last line. What is done stays done, and the same run again goes on."""

    signal: int | None = None
    """Number of the signal that ended it, if one did."""

    @classmethod
    def of(cls, why: str, done: int, lines: int, signal: int | None = None) -> Unfinished:
        error = cls(f"{why} {done} of {lines} lines are done; the same command goes on with the others.")
        error.signal = signal
        return error


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like this one, or None; `cutoff` is difflib's ratio, from 0 to 1."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence offering the nearest known name, or an empty string when nothing is near.

    >>> did_you_mean("max_token", ["max_tokens", "seed"])
    ' Did you mean max_tokens?'
    """
    near = nearest(name, known)
    return f" Did you mean {near}?" if near else ""
