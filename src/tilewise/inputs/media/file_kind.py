"""The kind of a file by its content, whatever its name, and whether a video's ends before what it announces.

Decoders play what is there and say nothing. Each container says in its way how far it goes: sizes of elements, chunks,
tags and packets, or a mark at its end. Only headers are read; a file of very many of them counts as whole.
"""

from __future__ import annotations

import codecs
import itertools
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

Family = Literal["picture", "video", "other"]
_HEAD = 4096
"""Bytes of a file that are looked at."""
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
_MOST_STEPS = 300_000
_MISSING = 1 << 64  # where a part ends that has to be there and is not: behind the end of any file
_VIDEO_HEAD = 1 << 16  # bytes in which FLV and ASF say how long they are
_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # ASF's object that names the file's size
_LARGEST_PAGE = 65_307  # bytes of an Ogg page (RFC 3533, section 6)


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file, as a sentence names it: `an SVG drawing`."""

    name: str
    family: Family = "other"


_PICTURES = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop file (PSD)"),
    (0, b"gimp xcf", "a GIMP file (XCF)"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\x01\xda", "an SGI picture"),
    (0, b"v/1\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance picture (HDR)"),
    (0, b"SIMPLE  =", "a FITS picture"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (40, b" EMF", "an enhanced metafile (EMF)"),
    (0, b"icns", "an Apple icon (ICNS)"),
    (128, b"DICM", "a DICOM file"),
    (0, b"AT&TFORM", "a DjVu document"),
    *((0, bytes([10, version, 1]), "a PCX picture") for version in (0, 2, 3, 4, 5)),
)
_VIDEOS = (
    (8, b"AVI ", "an AVI video"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a Windows Media file"),
    (0, b"\0\0\x01\xba", "an MPEG video"),
    (0, b"OggS", "an Ogg file"),
)
_OTHERS = (
    (0, b"%!PS", "a PostScript drawing"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript drawing"),
    (0, b"PK\x03\x04", "a ZIP archive or an Office document"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document"),
    (0, b"\x1f\x8b", "packed with gzip"),
    (0, b"BZh", "packed with bzip2"),
    (0, b"\xfd7zXZ\0", "packed with xz"),
    (0, b"(\xb5/\xfd", "packed with zstd"),
    (0, b"7z\xbc\xaf'\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"ID3", "a sound file (MP3)"),
    *((0, bytes([0xFF, second]), "a sound file (MP3)") for second in (0xFB, 0xF3, 0xF2)),
    *((0, bytes([0xFF, second]), "a sound file (AAC)") for second in (0xF1, 0xF9)),
    (0, b"fLaC", "a sound file (FLAC)"),
    (8, b"WAVE", "a sound file (WAV)"),
    (8, b"AIFF", "a sound file (AIFF)"),
    (0, b"#!AMR", "a sound file (AMR)"),
    (0, b"MThd", "a sound file (MIDI)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"glTF", "a 3D model"),
    (0, b"\x7fELF", "a program"),
    (0, b"SQLite format 3\0", "a SQLite database"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file that it points to"),
)
_SIGNATURES: tuple[tuple[tuple[tuple[int, bytes, str], ...], Family], ...] = (
    (_PICTURES, "picture"),
    (_VIDEOS, "video"),
    (_OTHERS, "other"),
)


def kind_of(content: bytes) -> FileKind | None:
    head = content[:_HEAD]
    if not head:
        return FileKind("empty")
    if b"%PDF-" in head[:1024]:
        return FileKind("a PDF document; send its pages as pictures")
    if head[4:8] == b"ftyp":
        return _kind_of_boxes(head)
    for table, family in _SIGNATURES:
        for start, signature, name in table:
            if head.startswith(signature, start):
                return FileKind(name, family)
    return _kind_of_text(head)


def is_heic(content: bytes) -> bool:
    """True for HEIF whose pictures are coded in HEVC. Source: ISO/IEC 23008-12, annex B (brands)."""
    brands = _brands(content[:_HEAD])
    return bool(brands) and (brands[0] in _HEIC or (brands[0] in (b"mif1", b"msf1") and not _HEIC.isdisjoint(brands)))


def _brands(head: bytes) -> list[bytes]:
    """Return the major brand of a file of ISO boxes, then those that it is compatible with."""
    if head[4:8] != b"ftyp":
        return []
    size = min(len(head), int.from_bytes(head[:4], "big"))
    return [head[8:12], *(head[place : place + 4] for place in range(16, size - 3, 4))]


def _kind_of_boxes(head: bytes) -> FileKind:
    if is_heic(head):
        return FileKind("a HEIC picture", "picture")
    brand = head[8:12]
    if brand in (b"avif", b"avis"):
        return FileKind("an AVIF picture", "picture")
    if brand == b"crx ":
        return FileKind("a camera's raw picture (CR3)", "picture")
    if brand in _SOUND_BRANDS:
        return FileKind("a sound file (M4A)")
    return FileKind("an MP4 or QuickTime video", "video")


def _kind_of_text(head: bytes) -> FileKind | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = text.lower()
    if lower.startswith(b"<") and b"<svg" in lower:
        return FileKind("an SVG drawing", "picture")
    if is_page(head):
        return FileKind("an HTML page: use the address of the file itself")
    if lower.startswith(b"<?xml"):
        return FileKind("an XML document")
    if text.startswith((b"{", b"[")):
        return FileKind("a JSON text")
    if text.startswith((b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"UklGR", b"data:")):
        return FileKind("base64 of a file: decode it once more")
    return FileKind("a text") if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        words = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n\f" for letter in words)


def is_page(head: bytes) -> bool:
    """True for an HTML page, by its first bytes."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html")) or b"<html" in start


def ends_early(file: BinaryIO) -> bool:
    """True if a file, open for reading, is shorter than it announces; False where its container announces nothing."""
    size = file.seek(0, 2)
    head = _at(file, 0, _VIDEO_HEAD)
    for starts, ends in _CONTAINERS:
        if starts(head):
            return any(end > size for end in itertools.islice(ends(file, head), _MOST_STEPS))
    return False


# Each of these yields places where a part of the file ends by what its header says.


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    """Read some bytes at a place, which may be behind the end, and further than any file is long."""
    file.seek(min(place, sys.maxsize))
    return file.read(count)


def _matroska(file: BinaryIO, head: bytes) -> Iterator[float]:
    """Go through EBML elements (RFC 8794), and into those of unknown size, as live recorders write them."""
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


def _gif(file: BinaryIO, head: bytes) -> Iterator[float]:
    """Go through blocks, up to the trailer (GIF89a, section 27)."""
    place = 13 + _palette(head[10:11])
    while (kind := _at(file, place, 10))[:1] != b";":
        if not kind:
            yield _MISSING
            return
        # Extension: mark and label. Picture: descriptor, its colours, and the size of its codes.
        place += 2 if kind[:1] == b"!" else 11 + _palette(kind[9:10])
        while length := _at(file, place, 1):
            place += 1 + length[0]
            yield place  # each block is a step: a file may have one for every other byte
            if not length[0]:
                break
        else:
            yield _MISSING


def _palette(flags: bytes) -> int:
    """Return the bytes of a table of colours; 0 without one."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _flv(file: BinaryIO, head: bytes) -> Iterator[float]:
    """Go through tags, each with a number of four bytes behind it."""
    named = head.find(b"\x00\x08filesize\x00")  # a property of onMetaData: the name's length, the name, a number
    number = head[named + 11 : named + 19]
    if named >= 0 and len(number) == 8:
        yield struct.unpack(">d", number)[0]
    place = int.from_bytes(head[5:9], "big") + 4
    while tag := _at(file, place, 11):
        place += 11 + int.from_bytes(tag[1:4], "big") + 4
        yield place


def _avi(file: BinaryIO, head: bytes) -> Iterator[float]:
    """Go through RIFF's chunks, and into lists of unknown size, as pipes get them, in which nobody goes back."""
    place = 0
    while len(head := _at(file, place, 8)) == 8 and head[:4].isascii():
        length = int.from_bytes(head[4:8], "little")
        if head[:4] in (b"RIFF", b"LIST") and length in (0, 0xFFFFFFFF):
            place += 12
        else:
            place += 8 + length
            yield place
            place += length & 1


def _asf(file: BinaryIO, head: bytes) -> Iterator[float]:
    place = head.find(_FILE_PROPERTIES)
    if place >= 0:
        yield int.from_bytes(head[place + 40 : place + 48], "little")


def _transport(file: BinaryIO, head: bytes) -> Iterator[float]:
    """Look whether packets are cut, or the last one goes on in a packet that is missing.

    Packets have 188 bytes, or 192 with a time before each. One that is full goes on in the next, as the last of a
    frame is filled up in its adaptation field (ISO 13818-1, section 2.4.3.5), unless the frame fits to the byte.
    """
    size, length = file.seek(0, 2), 188 if head[:1] == b"G" else 192
    packet = _at(file, size - 188, 188)
    number, flags = int.from_bytes(packet[1:3], "big"), packet[3] >> 4 & 3
    tables = number & 0x4000 and packet[4:7] != b"\0\0\1"
    if size % length or (flags == 1 and number & 0x1FFF not in (0, 0x1FFF) and not tables):
        yield _MISSING


def _program(file: BinaryIO, head: bytes) -> Iterator[float]:
    """Go through the packs and packets of an MPEG program stream (ISO 13818-1, section 2.5)."""
    place = 0
    while (start := _at(file, place, 14)) and start[:3] == b"\0\0\1" and len(start) > 5:
        if start[3] == 0xB9:  # the end
            return
        if start[3] == 0xBA:
            place += 14 + (start[13] & 7 if len(start) > 13 else 0) if start[4] >> 6 == 1 else 12
        else:
            place += 6 + int.from_bytes(start[4:6], "big")
        yield place


def _ogg(file: BinaryIO, head: bytes) -> Iterator[float]:
    """Look whether the last page is whole and says that it is the last one."""
    tail = _at(file, max(0, file.seek(0, 2) - _LARGEST_PAGE), _LARGEST_PAGE)
    page = tail[tail.rfind(b"OggS") :]
    table = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if not table or len(page) < 27 + len(table) + sum(table) or not page[5] & 4:
        yield _MISSING


def boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the kind of each outermost box of MP4 and QuickTime (ISO 14496-12, section 4.2), and where it ends."""
    place = 0
    while len(head := _at(file, place, 16)) >= 8:
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length
        if length < 8 or not head[4:8].isascii():  # 0 = up to the end; or something was hung on behind
            return
        place += length
        yield head[4:8], place


_CONTAINERS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, bytes], Iterator[float]]], ...] = (
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _matroska),
    (lambda head: head[:4] == b"GIF8", _gif),
    (lambda head: head[:3] == b"FLV", _flv),
    (lambda head: head[:4] == b"RIFF", _avi),
    (lambda head: head[:4] == b"\x30\x26\xb2\x75", _asf),
    (lambda head: head[:1] == head[188:189] == head[376:377] == b"G", _transport),
    (lambda head: head[4:5] == head[196:197] == head[388:389] == b"G", _transport),
    (lambda head: head[:4] == b"\0\0\1\xba", _program),
    (lambda head: head[:4] == b"OggS", _ogg),
    (
        lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"),
        lambda file, head: (end for _, end in boxes(file)),
    ),
)
