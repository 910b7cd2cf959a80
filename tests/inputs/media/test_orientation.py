"""Pictures and videos that are stored turned or mirrored come out as people see them.

The right value is that of the Exif standard: its eight notes say which side of the picture the first row and the first
column are. The matrices are those of ISO/IEC 14496-12 for the same eight.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.inputs.media.test_video import film
from tests.inputs.pictures import data_url, saved, user
from tilewise.config import EngineConfig
from tilewise.inputs.media.images import Opening, matrix_orientation, open_image, orientation, to_rgb, upright
from tilewise.inputs.media.reader import MediaOptions, MediaReader
from tilewise.inputs.media.video import FrameChoice, read_video
from tilewise.inputs.messages import read_messages
from tilewise.inputs.pieces import Message
from tilewise.sampling_params import SamplingParams

WIDTH, HEIGHT = 48, 32
COLOURS = {("top", "left"): (230, 30, 30), ("top", "right"): (30, 230, 30),
           ("bottom", "left"): (30, 30, 230), ("bottom", "right"): (230, 230, 230)}  # fmt: skip
SIDES = {1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
         5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom")}  # fmt: skip
"""Of the picture as seen: where the first stored row is, and where the first stored column is."""
MATRICES = {1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
            5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)}  # fmt: skip
EVERY = pytest.mark.parametrize("note", SIDES)


def seen() -> np.ndarray:
    """Four quarters, each of its own colour."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rows = {"top": slice(0, HEIGHT // 2), "bottom": slice(HEIGHT // 2, None)}
    columns = {"left": slice(0, WIDTH // 2), "right": slice(WIDTH // 2, None)}
    for (row, column), colour in COLOURS.items():
        pixels[rows[row], columns[column]] = colour
    return pixels


def stored(note: int) -> Image.Image:
    """The picture as a camera stores it with this note."""
    first_row, first_column = SIDES[note]
    pixels = seen()
    if first_row in ("left", "right"):
        pixels = pixels.swapaxes(0, 1)
    if first_row in ("bottom", "right"):
        pixels = pixels[::-1]
    if first_column in ("bottom", "right"):
        pixels = pixels[:, ::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))


def quarters(image: Image.Image) -> dict[tuple[str, str], str]:
    """Which colour each quarter is nearest to, named by where that colour belongs."""
    width, height = image.size
    places = {"top": height // 4, "bottom": 3 * height // 4, "left": width // 4, "right": 3 * width // 4}
    found = {}
    for row, column in COLOURS:
        pixel = np.array(image.getpixel((places[column], places[row])), int)
        found[row, column] = min(COLOURS, key=lambda corner: np.abs(pixel - COLOURS[corner]).sum())
    return found


def is_upright(image: Image.Image) -> bool:
    return image.size == (WIDTH, HEIGHT) and all(place == colour for place, colour in quarters(image).items())


def noted(note: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = note
    options = {"exif": exif} if kind != "TIFF" else {"tiffinfo": {0x0112: note}}
    return saved(stored(note), kind, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@EVERY
def test_pictures_of_every_orientation_are_seen_upright(kind, note):
    assert is_upright(to_rgb(open_image(noted(note, kind))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@EVERY
def test_the_reference_sees_them_as_they_are_stored(kind, note):
    image = to_rgb(open_image(noted(note, kind)), exif_orientation=False)
    assert image.size == stored(note).size
    assert quarters(image) == quarters(stored(note))


def test_a_note_in_xmp_counts_as_well():
    note = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert is_upright(to_rgb(open_image(saved(stored(6), "JPEG", xmp=note))))


@pytest.mark.parametrize("note", [0, 9, 255, 65535, "6", (6, 6), b"6"])
def test_a_note_that_means_nothing_leaves_the_picture_as_it_is(note):
    image = stored(1)
    image.getexif()[0x0112] = note
    assert is_upright(to_rgb(image))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0" + b"\xff" * 90]
)
def test_a_damaged_note_does_not_cost_the_picture(exif):
    """Browsers show such pictures; their camera's note is none."""
    assert is_upright(to_rgb(open_image(saved(stored(1), "JPEG", exif=exif))))


@EVERY
def test_what_was_turned_is_not_turned_again(note):
    image = upright(open_image(noted(note, "JPEG")))
    assert orientation(image) == 1
    assert is_upright(upright(image))


@EVERY
def test_messages_and_pictures_of_python_are_treated_alike(make_preparer, note):
    """`original_size` is that of the picture as it is cut."""
    data = noted(note, "PNG")
    for part in ({"image_url": data_url("image/png", data)}, {"image_pil": Image.open(io.BytesIO(data))}):
        sizes = []
        for follow in (True, False):
            reader = MediaReader(opening=Opening(exif_orientation=follow)).timed()
            messages, media = read_messages([user("Hi", part)], reader)
            preparer = make_preparer(config=EngineConfig(exif_orientation=follow))
            sizes.append(preparer.chat(messages, media, SamplingParams()).images[0].original_size)
        assert sizes == [(WIDTH, HEIGHT), stored(note).size]


def test_turned_is_the_default(make_preparer):
    turned = make_preparer().chat([Message("user", "Hi", 1)], [open_image(noted(6, "JPEG"))], SamplingParams())
    assert turned.images[0].original_size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("follow", [True, False])
def test_a_background_does_not_forget_the_orientation(follow):
    """Flattening loses the note, so the picture is turned before."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = stored(6).convert("RGBA")
    url = data_url("image/png", saved(picture, "PNG", exif=exif))
    options = MediaOptions.of({"image": {"rgba_background_color": [0, 0, 0]}})
    reader = MediaReader(opening=Opening(exif_orientation=follow)).timed(options)
    _, (image,) = read_messages([user({"image_url": url})], reader)
    assert is_upright(to_rgb(image, follow)) is follow


@pytest.fixture(scope="module")
def quartered(tmp_path_factory):
    """A video of the four quarters for each note, its track turned so that it is seen upright."""
    folder = tmp_path_factory.mktemp("turned")
    plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    films = {}
    for note, (a, b, c, d) in MATRICES.items():
        path = film(folder / f"{note}.mp4", 3, picture=stored(note))
        data = path.read_bytes()
        assert data.count(plain) == 2  # movie and track
        track = data.index(plain, data.index(b"tkhd"))
        turned = struct.pack(">9i", 65536 * a, 65536 * b, 0, 65536 * c, 65536 * d, 0, 0, 0, 1 << 30)
        films[note] = data[:track] + turned + data[track + 36 :]
    return films


@EVERY
def test_videos_of_every_display_matrix_are_seen_upright(quartered, note):
    frames = read_video(quartered[note], FrameChoice(2))
    assert len(frames) == 2
    assert all(map(is_upright, frames))


@EVERY
def test_videos_are_left_as_they_are_stored_when_asked(quartered, note):
    reader = MediaReader(frames=FrameChoice(1), opening=Opening(exif_orientation=False)).timed()
    (frame,) = reader.read_video(quartered[note])
    assert quarters(frame) == quarters(stored(note))
    assert frame.size == stored(note).size


@pytest.mark.parametrize(
    ("matrix", "note"),
    [((65536, 0, 0, 65536), 1), ((46341, 46340, -46340, 46341), 1), ((1000, 65528, -65528, 1000), 6), ((0,) * 4, 1)],
)
def test_a_matrix_between_quarters_is_the_nearest(matrix, note):
    a, b, c, d = matrix
    assert matrix_orientation(struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)) == note
