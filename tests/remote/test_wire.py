"""Messages between processes: whole, in order, and never waited for where one must not wait."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tilewise.remote.wire import Pipe, framed, pipe

Ends = tuple[Pipe, socket.socket]
LARGE = bytes(range(256)) * 2**14


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = pipe()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_arrive_whole_and_in_order(ends: Ends):
    ours, theirs = ends
    messages = ["first", ("second", 2), None, b""]
    for message in messages:
        ours.send(message)
    other = Pipe(theirs)
    assert [other.receive() for _ in messages] == messages


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 20])
def test_a_message_in_pieces_is_waited_for(ends: Ends, cut: int):
    ours, theirs = ends
    data = framed("a message") + framed("another")
    theirs.sendall(data[:cut])
    assert list(ours.arrived()) == []
    theirs.sendall(data[cut:])
    assert list(ours.arrived()) == ["a message", "another"]


def test_what_is_larger_than_the_sockets_room(ends: Ends):
    ours, theirs = ends
    sender = threading.Thread(target=ours.send, args=(LARGE,))
    sender.start()
    assert Pipe(theirs).receive() == LARGE
    sender.join()


def test_sending_what_there_is_room_for_does_not_wait(ends: Ends):
    ours, theirs = ends
    data = memoryview(framed(LARGE))
    sent = ours.send_some(data)
    assert 0 < sent < len(data)  # nobody reads
    while more := ours.send_some(data[sent:]):
        sent += more
    assert sent < len(data)
    rest = threading.Thread(target=ours.send_rest, args=(data[sent:],))
    rest.start()
    assert Pipe(theirs).receive() == LARGE
    rest.join()


def test_the_end_comes_behind_the_last_message(ends: Ends):
    ours, theirs = ends
    theirs.sendall(framed("last"))
    theirs.close()
    found = ours.arrived()
    assert next(found) == "last"
    with pytest.raises(EOFError):
        next(found)
    with pytest.raises(OSError):
        ours.send("nobody")


def test_whoever_waits_to_send_learns_of_the_closing(ends: Ends):
    ours, _ = ends
    failed = threading.Event()

    def send() -> None:
        try:
            ours.send(LARGE)
        except OSError:
            failed.set()

    sender = threading.Thread(target=send)
    sender.start()
    ours.close()
    sender.join(60)
    assert failed.is_set()
