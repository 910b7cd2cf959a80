"""ResponseStore: responses that were asked to be kept, in memory that is bounded by number, bytes and age.

Each belongs to the scope of the key that asked for it, so that no client finds another's. Conversations are kept with
their pictures, and every response counts its whole conversation, so that the bound holds whatever they share.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewise.environment import Environment
from tilewise.errors import InvalidField, InvalidRequest, Overloaded, TilewiseError
from tilewise.server.responses.call import ResponseCall
from tilewise.server.responses.items import ResponseObject, response_object


class UnknownResponse(TilewiseError):
    """No response of this id is kept, or not for whoever asks."""

    http_status = 404
    param = "response_id"


@dataclass(frozen=True)
class StoreLimits:
    most: int = 1000
    """Most responses that are kept."""
    most_bytes: int = 256 * 2**20
    seconds: float = 3600.0
    """Seconds after which a response is dropped."""

    @classmethod
    def from_environment(cls) -> StoreLimits | None:
        """Return the limits that environment variables set; None unless VLLM_ENABLE_RESPONSES_API_STORE is on.

        Raises InvalidConfig for a value that is no number.
        """
        environment = Environment.here()
        if not environment.store_responses:
            return None
        return cls(
            environment.stored_responses or cls.most,
            (environment.stored_responses_mib or cls.most_bytes >> 20) << 20,
            environment.stored_responses_seconds or int(cls.seconds),
        )


@dataclass
class StoredResponse:
    scope: str
    call: ResponseCall
    response: ResponseObject
    size: int
    """Bytes of the conversation and the response, as JSON."""
    since: float
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    """Task that works on the response in the background."""

    @property
    def running(self) -> bool:
        return self.response["status"] in ("queued", "in_progress")


class ResponseStore:
    """The responses that a server keeps. All methods belong to one event loop; `clock` is in seconds."""

    def __init__(self, limits: StoreLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._kept: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()  # the oldest first
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, scope: str, name: str) -> StoredResponse:
        """Return a response that is kept. Raises UnknownResponse."""
        self._expire()
        stored = self._kept.get((scope, name))
        if stored is None:
            raise UnknownResponse(
                f"Response with id '{name[:140]}' not found. It was not to be kept, is another client's, or had to go: "
                f"the newest {self._limits.most} are kept, for {self._limits.seconds:g} seconds."
            )
        return stored

    def conversation(self, scope: str, name: str) -> Sequence[Mapping[str, Any]]:
        """Return the items before a response that goes on from this one. Raises UnknownResponse, or InvalidField."""
        stored = self.find(scope, name)
        if stored.response["status"] not in ("completed", "incomplete"):
            status = stored.response["status"]
            raise InvalidField(
                "previous_response_id", f"previous_response_id: {name[:140]} is {status}, not completed."
            )
        return (*stored.call.items, *stored.response["output"])

    def measure(self, call: ResponseCall) -> int:
        """Return the bytes of a conversation. Raises InvalidField if it is larger than all there is room for."""
        size = len(json.dumps(call.items))
        if size > self._limits.most_bytes:
            raise InvalidField(
                "store",
                f"The conversation has {size} bytes, {self._limits.most_bytes} can be kept "
                "(TILEWISE_MAX_STORED_RESPONSES_MB): send store false.",
            )
        return size

    def keep(self, scope: str, call: ResponseCall, response: ResponseObject, measured: int) -> StoredResponse:
        """Keep a response and drop others for it, the oldest first; `measured` are the bytes of its conversation.

        Raises Overloaded if only responses that are being worked on could go.
        """
        size = measured + len(json.dumps(response))
        self._drop((scope, call.id))
        self._expire()
        while len(self._kept) >= self._limits.most or (self._kept and self.num_bytes + size > self._limits.most_bytes):
            self._drop(self._oldest())
        stored = self._kept[scope, call.id] = StoredResponse(scope, call, response, size, self._clock())
        self.num_bytes += size
        return stored

    def end(self, stored: StoredResponse, response: ResponseObject) -> None:
        """Store a response whose work in the background has ended; its age counts from now, and its size is new."""
        grown = len(json.dumps(response)) - len(json.dumps(stored.response))
        stored.response, stored.since, stored.size = response, self._clock(), stored.size + grown
        if (key := (stored.scope, stored.call.id)) in self._kept:
            self.num_bytes += grown
            self._kept.move_to_end(key)

    def cancel(self, scope: str, name: str) -> StoredResponse:
        """End the work on a response; one that has ended stays as it is. Raises UnknownResponse, or InvalidRequest for
        one that was not made in the background.
        """
        stored = self.find(scope, name)
        if not stored.call.background:
            raise InvalidRequest(f"Cannot cancel a synchronous response. {name[:140]} is {stored.response['status']}.")
        if stored.running:
            self.end(stored, response_object(stored.call, "cancelled", []))
            if stored.task is not None:
                stored.task.cancel()
        return stored

    def delete(self, scope: str, name: str) -> None:
        """Drop a response. Raises UnknownResponse."""
        self.find(scope, name)
        self._drop((scope, name))

    def discard(self, stored: StoredResponse) -> None:
        """Drop a response that will not be finished, if it is still there."""
        key = (stored.scope, stored.call.id)
        if self._kept.get(key) is stored:
            self._drop(key)

    def close(self) -> None:
        for key in list(self._kept):
            self._drop(key)

    def _oldest(self) -> tuple[str, str]:
        for key, stored in self._kept.items():
            if not stored.running:
                return key
        raise Overloaded(
            f"{len(self._kept)} responses are being worked on in the background, and no more can be kept: "
            "send the request again later."
        )

    def _expire(self) -> None:
        last = self._clock() - self._limits.seconds
        for key in [key for key, stored in self._kept.items() if stored.since < last and not stored.running]:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        stored = self._kept.pop(key, None)
        if stored is not None:
            self.num_bytes -= stored.size
            if stored.task is not None:
                stored.task.cancel()
