"""Files that are no pictures or no videos are named by what they are; HEIC is read where its library is."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from PIL import Image

from tests.inputs import pictures
from tilewise.errors import InvalidMedia
from tilewise.inputs.media import file_kind
from tilewise.inputs.media.file_kind import ends_early, is_heic, kind_of
from tilewise.inputs.media.images import ImageLimits, open_image, to_rgb
from tilewise.inputs.media.limits import MediaBudget, MediaLimits
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.video import read_video

SVG = b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "a")
    return buffer.getvalue()


def drawn(kind: str) -> bytes:
    return pictures.saved(Image.new("RGB", (9, 9)), kind)


NO_PICTURES = {
    "an SVG drawing": SVG,
    "an SVG drawing without a prologue": b"  <svg></svg>",
    "a PDF document": drawn("PDF"),
    "a PCX picture": drawn("PCX"),
    "an SGI picture": drawn("SGI"),
    "a DDS texture": drawn("DDS"),
    "a PostScript drawing": drawn("EPS"),
    "an HTML page: use the address of the file itself": b"<!DOCTYPE html>\n<HTML><body>404</body></HTML>",
    "a JSON text": json.dumps({"error": "not found"}).encode(),
    "an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a ZIP archive": archive(),
    "packed with gzip": b"\x1f\x8b\x08" + bytes(30),
    r"a sound file \(MP3\)": b"ID3\x04" + bytes(30),
    r"a sound file \(WAV\)": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "base64 of a file: decode it once more": b"iVBORw0KGgoAAAANSUhEUgAAAAkAAAAJCAIAAABv85FHAAAA",
    "a text": "Für später".encode() * 500,
    "empty": b"",
}


@pytest.mark.parametrize(("kind", "data"), NO_PICTURES.items(), ids=NO_PICTURES)
def test_what_is_no_picture_is_named(kind, data):
    kind = kind.partition(" without")[0]
    with pytest.raises(
        InvalidMedia, match=rf"is not a picture that can be read \(it is {kind}.*\). Formats that are read: JPEG"
    ):
        open_image(data)


@pytest.mark.parametrize("form", ["mp4", "avi", "matroska"])
def test_a_video_in_the_place_of_a_picture(form):
    with pytest.raises(InvalidMedia, match=r"it is an? .*video\): send it as a video_url"):
        open_image(pictures.video(container_format=form))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_a_picture_in_the_place_of_a_video(kind):
    """FFmpeg reads some of them as a film of one frame, which is fine."""
    data = drawn(kind)
    assert kind_of(data).family == "picture"
    try:
        frames = read_video(data)
    except InvalidMedia as error:
        said = str(error)
    else:
        said = "codec" if len(frames) == 1 else "several frames"
    assert "send it as an image_url" in said or "codec" in said


@pytest.mark.parametrize(("kind", "data"), NO_PICTURES.items(), ids=NO_PICTURES)
def test_what_is_no_video_is_named(kind, data):
    with pytest.raises(InvalidMedia) as caught:
        read_video(data)
    assert "is not a video that can be read" in str(caught.value) or "has sound alone" in str(caught.value)
    assert "Errno" not in str(caught.value)


def test_a_box_that_is_longer_than_any_file():
    head = b"\0\0\0\x1cftypisom\0\0\2\0isomiso1mp41"
    with pytest.raises(InvalidMedia, match="that is damaged or cut off"):
        read_video(head + b"\0\0\0\1free" + b"\xff" * 8)


class Counted(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


def test_a_gif_of_blocks_without_end_is_not_followed_to_its_end():
    """A block may be of one byte: a file of megabytes has millions, each of them a read."""
    blocks = 2 * file_kind._MOST_STEPS
    file = Counted(b"GIF89a" + b"\0" * 7 + b"!\xfe" + b"\1a" * blocks + b"\0;")
    assert not ends_early(file)
    assert file.reads < blocks


@pytest.mark.parametrize("data", [b"\0" * 100, b"\x89PN", bytes(range(256))])
def test_what_is_nothing_known_has_no_name(data):
    assert kind_of(data) is None
    with pytest.raises(InvalidMedia, match=r"is not a picture that can be read\. Formats that are read: JPEG"):
        open_image(data)


def heic(size: tuple[int, int] = (64, 48), **options) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", size, "red")).save(buffer, quality=90, **options)
    return buffer.getvalue()


def test_heic_is_read_and_pillow_stays_as_it_is():
    data = heic()
    assert is_heic(data)
    image = to_rgb(open_image(data))
    assert image.size == (64, 48)
    red, green, blue = image.getpixel((30, 30))
    assert red > 200
    assert max(green, blue) < 50
    assert "HEIF" not in Image.OPEN


def test_heic_keeps_its_transparency():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGBA", (64, 48), (0, 0, 0, 0))).save(buffer, quality=90)
    assert min(to_rgb(open_image(buffer.getvalue())).getpixel((9, 9))) > 240


def test_a_turned_heic_is_turned_once():
    """The file's own rotation is applied by the library, and the camera's note with it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = Image.new("RGB", (64, 48), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture).save(buffer, quality=90, exif=exif.tobytes())
    assert to_rgb(open_image(buffer.getvalue())).size == (48, 64)


def test_the_limits_of_pictures_hold_for_heic(monkeypatch):
    data = heic()
    with pytest.raises(InvalidMedia, match="64x48 = 3072 pixels, the limit is 3071"):
        open_image(data, ImageLimits(max_pixels=3071))
    with pytest.raises(InvalidMedia, match="bytes of pixels or more, the limit is 12287"):
        open_image(data, budget=MediaBudget(MediaLimits(request_decoded_bytes=12287)))


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_heic_cut_short(keep):
    data = heic()
    with pytest.raises(InvalidMedia, match="damaged or cut short"):
        open_image(data[: int(keep * len(data))])


def test_several_pictures_in_a_heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red"))
    file.add_from_pillow(Image.new("RGB", (64, 48), "blue"))
    buffer = io.BytesIO()
    file.save(buffer, quality=90)
    reader = MediaReader().timed()
    assert to_rgb(reader.open_image(buffer.getvalue())).getpixel((9, 9))[0] > 200
    assert reader.ignored.names == ("further_frames",)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("tilewise.host.find_spec", lambda name: None)
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    with pytest.raises(InvalidMedia, match=r"is a HEIC picture.*pip install 'tilewise\[heic\]'.*send it as JPEG"):
        open_image(head)
