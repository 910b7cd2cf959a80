"""The check whether a video file ends before what its own structure announces.

Decoders play what is there and say nothing. Each container says in its way how far it goes: sizes of elements, chunks,
tags and packets, or a mark at its end. Only headers are read; a file of very many of them counts as whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

_MOST_STEPS = 300_000
_HEAD = 1 << 16  # bytes in which FLV and ASF say how long they are
_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # ASF's object that names the file's size
_LARGEST_PAGE = 65_307  # bytes of an Ogg page (RFC 3533, section 6)


def ends_early(file: BinaryIO) -> bool:
    """True if a file, open for reading, is shorter than it announces; False where its container announces nothing."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_HEAD)
    for starts, check in _CHECKS:
        if starts(head):
            return check(file, head, size)
    return False


def _past(places: Iterator[int], size: int) -> bool:
    """True if the last of the places where parts end is beyond the file."""
    place = 0
    for step, place in enumerate(places):
        if place > size or step > _MOST_STEPS:
            break
    return place > size


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _matroska(file: BinaryIO, head: bytes, size: int) -> bool:
    return _past(_elements(file), size)


def _elements(file: BinaryIO) -> Iterator[int]:
    """Yield ends of EBML elements (RFC 8794), and go into those of unknown size, as live recorders write them."""
    place = 0
    while head := _at(file, place, 12):
        id_length = 9 - head[0].bit_length()
        if head[0] == 0 or id_length > 4:  # no EBML: something was hung on behind
            return
        if len(head) <= id_length:
            yield place + id_length + 1
            return
        size_length = 9 - head[id_length].bit_length()
        if size_length > 8 or len(head) < id_length + size_length:
            yield place + id_length + size_length
            return
        value = int.from_bytes(head[id_length : id_length + size_length], "big") & ((1 << 7 * size_length) - 1)
        unknown = value == (1 << 7 * size_length) - 1
        place += id_length + size_length + (0 if unknown else value)
        yield place


def _gif(file: BinaryIO, head: bytes, size: int) -> bool:
    """True unless the blocks go on to a trailer (GIF89a, section 27)."""
    ends = list(_blocks(file, head))
    return bool(ends) and (ends[-1] == 0 or ends[-1] > size)


def _blocks(file: BinaryIO, head: bytes) -> Iterator[int]:
    """Yield ends of blocks; 0 where the file ends instead of a block."""
    place = 13 + _palette(head[10:11])
    for _ in range(_MOST_STEPS):
        kind = _at(file, place, 10)
        if kind[:1] == b";":
            return
        if not kind:
            yield 0
            return
        # Extension: mark and label. Picture: descriptor, its colours, and the size of its codes.
        place += 2 if kind[:1] == b"!" else 11 + _palette(kind[9:10])
        while True:
            length = _at(file, place, 1)
            if not length:
                yield 0
                return
            place += 1 + length[0]
            if not length[0]:
                break
        yield place


def _palette(flags: bytes) -> int:
    """Return the bytes of a table of colours; 0 without one."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _flv(file: BinaryIO, head: bytes, size: int) -> bool:
    named = head.find(b"\x00\x08filesize\x00")  # a property of onMetaData: the name's length, the name, a number
    number = head[named + 11 : named + 19]
    if named >= 0 and len(number) == 8 and struct.unpack(">d", number)[0] > size:
        return True
    return _past(_tags(file, head), size)


def _tags(file: BinaryIO, head: bytes) -> Iterator[int]:
    """Yield ends of FLV's tags, with the number of four bytes behind each."""
    place = int.from_bytes(head[5:9], "big") + 4
    while tag := _at(file, place, 11):
        place += 11 + int.from_bytes(tag[1:4], "big") + 4
        yield place


def _avi(file: BinaryIO, head: bytes, size: int) -> bool:
    return _past(_chunks(file), size)


def _chunks(file: BinaryIO) -> Iterator[int]:
    """Yield ends of RIFF's chunks, and go into lists of unknown size, as pipes get them, in which nobody goes back."""
    place = 0
    while len(head := _at(file, place, 8)) == 8 and head[:4].isascii():
        length = int.from_bytes(head[4:8], "little")
        if head[:4] in (b"RIFF", b"LIST") and length in (0, 0xFFFFFFFF):
            place += 12
        else:
            place += 8 + length
            yield place
            place += length & 1


def _asf(file: BinaryIO, head: bytes, size: int) -> bool:
    place = head.find(_FILE_PROPERTIES)
    return place >= 0 and int.from_bytes(head[place + 40 : place + 48], "little") > size


def _transport(file: BinaryIO, head: bytes, size: int) -> bool:
    """True if packets are cut, or the last one goes on in a packet that is missing.

    Packets have 188 bytes, or 192 with a time before each. One that is full goes on in the next, as the last of a
    frame is filled up in its adaptation field (ISO 13818-1, section 2.4.3.5), unless the frame fits to the byte.
    """
    length = 188 if head[:1] == b"G" else 192
    if size % length:
        return True
    packet = _at(file, size - 188, 188)
    number, flags = int.from_bytes(packet[1:3], "big"), packet[3] >> 4 & 3
    tables = number & 0x4000 and packet[4:7] != b"\0\0\1"
    return flags == 1 and number & 0x1FFF not in (0, 0x1FFF) and not tables


def _program(file: BinaryIO, head: bytes, size: int) -> bool:
    return _past(_packets(file), size)


def _packets(file: BinaryIO) -> Iterator[int]:
    """Yield ends of the packs and packets of an MPEG program stream (ISO 13818-1, section 2.5)."""
    place = 0
    while (start := _at(file, place, 14)) and start[:3] == b"\0\0\1" and len(start) > 5:
        if start[3] == 0xB9:  # the end
            return
        if start[3] == 0xBA:
            place += 14 + (start[13] & 7 if len(start) > 13 else 0) if start[4] >> 6 == 1 else 12
        else:
            place += 6 + int.from_bytes(start[4:6], "big")
        yield place


def _ogg(file: BinaryIO, head: bytes, size: int) -> bool:
    """True unless the last page is whole and says that it is the last one."""
    tail = _at(file, max(0, size - _LARGEST_PAGE), _LARGEST_PAGE)
    page = tail[tail.rfind(b"OggS") :]
    table = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return not table or len(page) < 27 + len(table) + sum(table) or not page[5] & 4


def _boxes(file: BinaryIO, head: bytes, size: int) -> bool:
    return _past(_box_ends(file), size)


def _box_ends(file: BinaryIO) -> Iterator[int]:
    """Yield ends of the outermost boxes of MP4 and QuickTime (ISO 14496-12, section 4.2)."""
    place = 0
    while len(head := _at(file, place, 16)) >= 8:
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length
        if length < 8 or not head[4:8].isascii():  # 0 = up to the end; or something was hung on behind
            return
        place += length
        yield place


_CHECKS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, bytes, int], bool]], ...] = (
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _matroska),
    (lambda head: head[:4] == b"GIF8", _gif),
    (lambda head: head[:3] == b"FLV", _flv),
    (lambda head: head[:4] == b"RIFF", _avi),
    (lambda head: head[:4] == b"\x30\x26\xb2\x75", _asf),
    (lambda head: head[:1] == head[188:189] == head[376:377] == b"G", _transport),
    (lambda head: head[4:5] == head[196:197] == head[388:389] == b"G", _transport),
    (lambda head: head[:4] == b"\0\0\1\xba", _program),
    (lambda head: head[:4] == b"OggS", _ogg),
    (lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"), _boxes),
)
