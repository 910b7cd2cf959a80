"""Targets: pictures, videos, tensors and the URLs that name them."""

from __future__ import annotations

import base64
import errno
import io
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.target import JSON, damaged, of_bytes, of_values, refusing
from tests.inputs import pictures
from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.inputs.media.arrays import EmbeddingForm
from tilewise.inputs.media.fetch import DataUrl, MediaAccess, decode_base64
from tilewise.inputs.media.file_kind import ends_early, kind_of
from tilewise.inputs.media.hosts import WebAddress, is_public
from tilewise.inputs.media.images import ImageLimits, Opening, open_image, to_rgb
from tilewise.inputs.media.limits import MediaBudget, MediaLimits
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.tensor_file import write_safetensors
from tilewise.inputs.media.tiling import Tiling, choose_grid, count_tiles, tile_image, tiles_of
from tilewise.inputs.media.video import FrameChoice, read_video
from tilewise.inputs.messages import read_messages

LIMITS = MediaLimits(
    file_bytes=2**20, request_bytes=2**20, request_decoded_bytes=2**24, retries=0, video_frames=200, chosen_frames=4
)
PICTURE_LIMITS = ImageLimits(max_pixels=2**20, max_side=4096)
SMALL_TILES = Tiling(tile_size=28, max_tiles=6)


def pictures_of_all_formats() -> list[bytes]:
    """Small pictures of every format that is read, in the modes that each has."""
    plain, alpha = pictures.noise(9), pictures.noise(9).convert("RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6
    save = pictures.saved
    files = [
        *(save(plain, "JPEG", exif=turned), save(plain, "JPEG", progressive=True), save(plain.convert("CMYK"), "JPEG")),
        *(save(plain.convert(mode), "PNG") for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")),
        *(save(plain, "WEBP"), save(alpha, "WEBP", lossless=True), save(plain, "WEBP", save_all=True,
                                                                       append_images=[plain])),
        *(save(plain, "GIF"), save(plain, "GIF", save_all=True, append_images=[alpha])),
        *(save(plain, "BMP"), save(plain.convert("P"), "BMP"), save(plain, "PPM"), save(plain.convert("L"), "PPM")),
        *(save(plain, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")),
        *(save(plain.convert(mode), "TIFF") for mode in ("F", "I;16", "LAB", "CMYK", "1")),
        *(save(plain, "AVIF"), save(plain, "JPEG2000"), save(alpha, "ICO"), save(alpha, "TGA"), save(plain, "TGA",
                                                                                             rle=True)),
    ]  # fmt: skip
    return [*files, _heic(plain)]


def _heic(picture: Image.Image) -> bytes:
    from pillow_heif import from_pillow

    file = io.BytesIO()
    from_pillow(picture.resize((32, 32))).save(file)
    return file.getvalue()


def videos_of_all_containers() -> list[bytes]:
    made = [
        *(("mpeg4", "avi"), ("mpeg4", "mp4"), ("libx264", "matroska"), ("mpeg1video", "mpeg"), ("mpeg4", "mpegts")),
        *(("flv", "flv"), ("libvpx", "webm"), ("mjpeg", "mov"), ("wmv2", "asf")),
    ]
    return [pictures.video(3, codec=codec, container_format=container) for codec, container in made]


@of_bytes(pictures_of_all_formats)
def picture(data: bytes) -> None:
    """A file becomes a picture within the limits, of as many tiles as were planned, or is refused."""
    with refusing(InvalidMedia):
        found = to_rgb(open_image(data, PICTURE_LIMITS, MediaBudget(LIMITS)))
        assert found.mode == "RGB"
        assert found.width * found.height <= PICTURE_LIMITS.max_pixels
        tiles = tile_image(found, SMALL_TILES)
        assert len(tiles) == tiles_of(found, SMALL_TILES)


@of_bytes(videos_of_all_containers, examples=30)
def video(data: bytes) -> None:
    """A file becomes one to three frames within the limits, or is refused."""
    with refusing(InvalidMedia):
        frames = read_video(data, FrameChoice(3), Opening(PICTURE_LIMITS), MediaBudget(LIMITS))
        assert 1 <= len(frames) <= 3
        assert all(frame.width * frame.height <= PICTURE_LIMITS.max_pixels for frame in frames)


@of_bytes(lambda: [*pictures_of_all_formats(), *videos_of_all_containers()])
def file_kind(data: bytes) -> None:
    """The kind of any file can be asked for, and whether it ends too early."""
    kind_of(data)
    ends_early(io.BytesIO(data))


def _tensor_files() -> list[bytes]:
    rows, numpy_file, torch_file = np.arange(32, dtype=np.float32).reshape(4, 8), io.BytesIO(), io.BytesIO()
    np.save(numpy_file, rows)
    torch.save(torch.tensor(rows).bfloat16(), torch_file)
    return [write_safetensors("image_embeds", rows), numpy_file.getvalue(), torch_file.getvalue()]


@of_bytes(_tensor_files)
def tensor_file(data: bytes) -> None:
    """A file becomes rows of tiles in which all numbers are finite, or is refused."""
    with refusing(InvalidMedia):
        found = EmbeddingForm(tokens=4, hidden=8).read(data, MediaBudget(LIMITS))
        assert all(tile.rows.shape == (4, 8) for tile in found.tiles)


_SPELLINGS = st.sampled_from(["standard", "url-safe", "unpadded", "broken lines", "percent", "plain"])


@st.composite
def data_urls(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw a data URL as clients write them, and the bytes that it stands for."""
    data, spelling = draw(st.binary(max_size=60)), draw(_SPELLINGS)
    kind = draw(st.sampled_from(["image/png", "IMAGE/PNG", "image/png;charset=utf-8", "", "video/mp4"]))
    if spelling == "plain":
        return f"data:{kind}," + "".join(f"%{byte:02x}" for byte in data), data
    text = base64.b64encode(data).decode()
    if spelling == "url-safe":
        text = text.replace("+", "-").replace("/", "_")
    elif spelling == "unpadded":
        text = text.rstrip("=")
    elif spelling == "broken lines":
        text = "\r\n".join(text[place : place + 7] for place in range(0, len(text), 7))
    elif spelling == "percent":
        text = "".join(f"%{ord(letter):02X}" if place % 3 == 0 else letter for place, letter in enumerate(text))
    scheme, coding = draw(st.sampled_from(["data:", "DATA:", " data:"])), draw(st.sampled_from(["base64", "BASE64"]))
    return f"{scheme}{kind};{coding},{text}", data


@of_values(data_urls())
def data_url(value: tuple[str, bytes]) -> None:
    """Whatever a client's way of writing is, the bytes are those that it meant."""
    url, data = value
    assert MediaAccess(limits=LIMITS).fetch(url) == data


@of_values(st.text(max_size=40) | st.text(st.sampled_from("AZaz09+/-_=% \n,;:"), max_size=60), examples=120)
def base64_text(text: str) -> None:
    """Any text is decoded or refused; what Python's strict decoder takes is decoded as there."""
    with refusing(InvalidMedia):
        found = decode_base64(text, MediaBudget(LIMITS))
        try:
            strict = base64.b64decode(text, validate=True)
        except ValueError:
            return
        assert found == strict
    with refusing(InvalidMedia):
        DataUrl.of(f"data:{text}").decode(MediaBudget(LIMITS))


class Network:
    """A resolver that gives the same answer to everybody, and a record of what was asked for and connected to."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.reached: list[tuple[str, int]] = []

    def resolve(self, host: str, *args: Any, **options: Any) -> list[Any]:
        self.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 0)) for number in self.answers]

    def connect(self, _: Any, address: tuple[str, int]) -> int:
        self.reached.append(address[:2])
        return errno.ECONNREFUSED

    def fetch(self, url: str, **access: Any) -> None:
        """Fetch a URL over this network, where nobody answers."""

        def never(*args: Any) -> None:
            raise AssertionError("connected")

        with (
            patch.object(socket, "getaddrinfo", self.resolve),
            patch.object(socket.socket, "connect_ex", lambda *args: self.connect(*args)),
            patch.object(socket.socket, "connect", never),
        ):
            MediaAccess(limits=LIMITS, **access).fetch(url)


_NUMBERS = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "8.8.8.8", "93.184.216.34", "::1", "fd00::1", "2606:4700::1"]
_PIECES = st.sampled_from(
    [
        *(
            "http",
            "https",
            "HTTP",
            "file",
            "data",
            "ftp",
            ":",
            "//",
            "/",
            "\\",
            "@",
            "#",
            "?",
            "%",
            "%40",
            "%2f",
            "%00",
        ),
        *("..", "[", "]", "[::1]", "[::ffff:127.0.0.1]", "localhost", "a.example", "127.0.0.1", "0x7f.1", "2130706433"),
        *(
            ":80",
            ":0",
            ":99999",
            ".",
            "。",
            "１",
            "\t",
            "\n",
            "\r\n",
            " ",
            "\x00",
            "é",
            "ß",
            "\ud800",
            "xn--",
            "base64,",
        ),
        *(";", "a.example:81", "user:key@"),
    ]
)
URLS = st.builds("".join, st.lists(_PIECES | st.text(max_size=3), max_size=12))
HTTP_URLS = st.builds("{}://{}".format, st.sampled_from(["http", "https"]), URLS)


@of_values(st.tuples(URLS | HTTP_URLS, st.lists(st.sampled_from(_NUMBERS), max_size=3)), examples=80)
def url(value: tuple[str, list[str]]) -> None:
    """What is connected to is the host that was checked, on its port, and public; another domain is never asked for."""
    text, numbers = value
    network = Network(numbers)
    with refusing(InvalidMedia):
        network.fetch(text)
    if network.asked or network.reached:
        address = WebAddress.of(text.strip())
        assert set(network.asked) == {address.host}
        assert {port for _, port in network.reached} <= {address.port}
    assert {number for number, _ in network.reached} <= set(numbers)
    assert not network.reached or all(map(is_public, numbers))
    network = Network(["8.8.8.8"])
    with refusing(InvalidMedia):
        network.fetch(text, allowed_media_domains=("a.example",))
    assert set(network.asked) <= {"a.example"}


_SIDES = st.integers(1, 60) | st.integers(1, 2**18)
_OPTIONS = st.dictionaries(
    st.sampled_from(["min_dynamic_patch", "max_dynamic_patch", "dynamic_image_size", "use_thumbnail", "tiles"]),
    st.integers(-1, 200) | st.booleans() | JSON,
    max_size=4,
)


@of_values(st.tuples(_SIDES, _SIDES, st.integers(1, 9), _OPTIONS))
def tiling(value: tuple[int, int, int, dict[str, Any]]) -> None:
    """Any size and any options: a grid within the limits, and as many tiles cut as were planned."""
    width, height, size, options = value
    with refusing(InvalidRequest):
        rule = Tiling(tile_size=size).override(options)
        columns, rows = choose_grid(width, height, rule)
        assert rule.min_tiles <= columns * rows <= rule.max_tiles or not rule.dynamic
        if width * height < 2**14:
            tiles = tile_image(Image.new("RGB", (width, height)), rule)
            assert tiles.shape == (count_tiles((columns, rows), rule.thumbnail), size, size, 3)


_FRAMES = st.lists(st.binary(max_size=40) | st.deferred(lambda: damaged(pictures_of_all_formats()[:12])), max_size=6)


@of_values(_FRAMES, examples=30)
def frame_list(frames: list[bytes]) -> None:
    """A video as a list of pictures has as many frames as pictures, or is refused."""
    listed = ",".join(base64.b64encode(frame).decode() for frame in frames)
    message = pictures.user({"video_url": f"data:video/jpeg;base64,{listed}"})
    reader = partial(MediaReader, MediaAccess(limits=LIMITS), Opening(PICTURE_LIMITS))
    with refusing(InvalidMedia):
        _, media = read_messages([message], reader().timed())
        assert len(media[0]) == len(frames) <= LIMITS.chosen_frames
