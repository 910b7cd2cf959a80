"""A limit in time for the head of a request, which uvicorn waits for without one."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Closes a connection whose client owes a head, or the rest of a body that is refused, for too long.

    Sending a little of it now and then does not help. Bodies that are read have a limit of their own (`Intake`).
    """

    patience = 30.0
    """Seconds."""
    _owing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if not self._owes():
            self._stop()
        elif self._owing is None:
            self._owing = self.loop.call_later(self.patience, self.transport.close)

    def _owes(self) -> bool:
        theirs = self.conn.their_state
        return theirs is h11.IDLE or (theirs is h11.SEND_BODY and self.conn.our_state is h11.DONE)

    def _stop(self) -> None:
        if self._owing is not None:
            self._owing.cancel()
            self._owing = None
