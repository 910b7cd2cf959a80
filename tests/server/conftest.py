"""Fixtures of the tests that talk to a real server."""

from tests.server.live import live, locked, locked_server, shared_server, sound_server

__all__ = ["live", "locked", "locked_server", "shared_server", "sound_server"]
