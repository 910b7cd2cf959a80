"""The kind of a file by its content, whatever its name: for errors about files that are no pictures or no videos."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal

Family = Literal["picture", "video", "other"]
_HEAD = 4096
"""Bytes of a file that are looked at."""
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ")


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
    """Return the kind of a file; None for one that is not known."""
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
