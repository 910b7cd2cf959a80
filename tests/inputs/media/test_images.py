"""Opening pictures: every mode to RGB, orientation, limits, and damage that never surprises."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, GifImagePlugin, Image, ImageCms, PngImagePlugin

from tilewise.errors import InvalidMedia
from tilewise.ignored import Ignored
from tilewise.inputs.media.images import ImageLimits, further_frames, open_image, reason, to_rgb
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.messages import read_messages
from tilewise.inputs.pieces import Message
from tilewise.inputs.prompts import read_prompts
from tilewise.sampling_params import SamplingParams

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (80 * i, 0, 0)) for i in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def colour(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((1, 1))


def flat(mode: str, value) -> Image.Image:
    return Image.new(mode, (4, 4), value)


def lab_red() -> Image.Image:
    to_lab = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
    return ImageCms.profileToProfile(flat("RGB", RED), *to_lab, outputMode="LAB")


def palette_red() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([*BLACK, *RED])
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (flat("1", 1), WHITE),
        (flat("1", 0), BLACK),
        (flat("L", 90), (90, 90, 90)),
        (flat("LA", (90, 255)), (90, 90, 90)),
        (flat("RGB", (1, 2, 3)), (1, 2, 3)),
        (flat("RGBA", (1, 2, 3, 255)), (1, 2, 3)),
        (flat("RGBX", (1, 2, 3, 0)), (1, 2, 3)),
        (flat("RGBA", (1, 2, 3, 255)).convert("RGBa"), (1, 2, 3)),
        (palette_red(), RED),
        (palette_red().convert("PA"), RED),
        (flat("CMYK", (0, 255, 255, 0)), RED),
        (flat("CMYK", (0, 0, 0, 0)), WHITE),
        (flat("CMYK", (0, 0, 0, 255)), BLACK),
        (flat("HSV", (0, 255, 255)), RED),
        (flat("YCbCr", (255, 128, 128)), WHITE),
        (flat("YCbCr", (0, 128, 128)), BLACK),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_opaque_pictures_keep_their_colours(image, expected):
    assert colour(to_rgb(image)) == expected


def test_premultiplied_grey_is_read():
    assert colour(to_rgb(flat("LA", (90, 255)).convert("La"))) == (90, 90, 90)


def test_lab_becomes_srgb():
    assert np.abs(np.subtract(colour(to_rgb(lab_red())), RED)).max() <= 6  # eight bits of LAB are coarse


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (Image.fromarray(np.full((4, 4), 32768, np.uint16)), 128),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), 255),
        (Image.frombytes("I;16B", (4, 4), struct.pack(">H", 32768) * 16), 128),
        (Image.frombytes("I;16L", (4, 4), struct.pack("<H", 32768) * 16), 128),
        (flat("I", 32768), 128),
        (flat("I", 128), 128),
        (flat("I", 10**6), 255),
        (flat("I", -5), 0),
        (flat("F", 128.0), 128),
        (flat("F", 0.5), 128),
        (flat("F", 32768.0), 128),
        (flat("F", -3.0), 0),
        (flat("F", float("inf")), 255),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_deep_grey_is_scaled_to_eight_bits(image, grey):
    assert colour(to_rgb(image)) == pytest.approx((grey,) * 3, abs=1)


def test_a_16_bit_picture_without_bright_pixels_stays_dark():
    assert max(colour(to_rgb(Image.fromarray(np.full((4, 4), 200, np.uint16))))) <= 1


def test_float_pictures_with_gaps_are_read():
    assert colour(to_rgb(flat("F", float("nan")))) == BLACK


def test_16_bit_png_from_bytes():
    data = saved(Image.fromarray(np.full((4, 4), 32768, np.uint16)))
    assert colour(to_rgb(open_image(data))) == pytest.approx((128,) * 3, abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparent_is_white(mode):
    assert colour(to_rgb(Image.new(mode, (4, 4)))) == WHITE


def test_half_transparent_red_is_pink():
    assert colour(to_rgb(flat("RGBA", (255, 0, 0, 128)))) == pytest.approx((255, 127, 127), abs=1)


def test_one_transparent_palette_entry_is_white():
    assert colour(to_rgb(open_image(saved(palette_red(), transparency=1)))) == WHITE
    assert colour(to_rgb(open_image(saved(palette_red(), transparency=0)))) == RED


def test_palette_entries_with_own_alpha():
    data = saved(palette_red(), transparency=bytes([255, 128]))
    assert colour(to_rgb(open_image(data))) == pytest.approx((255, 127, 127), abs=1)


def test_a_palette_of_rgba_colours_keeps_its_transparency():
    assert colour(to_rgb(flat("RGBA", (0, 0, 0, 0)).quantize())) == WHITE


@pytest.mark.parametrize(("mode", "value"), [("L", 7), ("1", 0), ("RGB", (1, 2, 3))])
def test_a_transparent_colour_of_a_png_without_alpha_is_white(mode, value):
    assert colour(to_rgb(open_image(saved(flat(mode, value), transparency=value)))) == WHITE


def sideways() -> bytes:
    """40x20, left half red, and a note of the camera: turn by 90 degrees."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, "PNG", exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF"])
def test_common_formats_open_from_bytes_and_from_a_path(kind, tmp_path):
    data = saved(Image.new("RGB", (12, 8), "red"), kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        image = open_image(source)
        assert image.size == (12, 8)
        assert np.abs(np.subtract(colour(to_rgb(image)), RED)).max() <= 3


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"hello", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_picture(data):
    with pytest.raises(InvalidMedia, match=r"is not a picture that can be read|is damaged: it begins as"):
        open_image(data)


def test_a_web_page_on_disk_gets_the_same_hint(tmp_path):
    page = tmp_path / "picture.jpg"
    page.write_text("<html></html>")
    with pytest.raises(InvalidMedia, match=r"picture\.jpg is not a picture.*HTML page"):
        open_image(page)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_picture(kind):
    data = saved(noise(), kind)
    with pytest.raises(InvalidMedia, match=r"damaged or cut short.*send the whole file again"):
        open_image(data[: len(data) // 2])


def test_a_picture_whose_head_alone_is_wrong():
    data = bytearray(saved(noise(), "PNG"))
    data[30] ^= 1  # the checksum of its first chunk
    with pytest.raises(InvalidMedia, match="is damaged: it begins as a PNG picture, and what follows is none"):
        open_image(bytes(data))


def test_a_picture_with_a_text_beyond_pillows_limit():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    out = io.BytesIO()
    Image.new("RGB", (9, 9)).save(out, "PNG", pnginfo=texts)
    with pytest.raises(InvalidMedia, match=r"has texts or a colour profile beyond Pillow.s limit of 1 MiB"):
        open_image(out.getvalue())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidMedia, match=r"gone\.png: no such file"):
        open_image(tmp_path / "gone.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(InvalidMedia):
        open_image(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3000, 28), (1000, 5), (5, 1000), (20_000, 1)])
def test_thin_pictures_are_opened(size):
    assert open_image(saved(Image.new("L", size))).size == size


@pytest.mark.parametrize("size", [(1000, 5), (5, 1000), (11, 1)])
def test_the_aspect_ratio_may_be_limited(size):
    limits = ImageLimits(max_aspect=10)
    assert open_image(saved(Image.new("L", (50, 5))), limits).size == (50, 5)
    with pytest.raises(InvalidMedia, match=f"is {size[0]}x{size[1]}: its sides differ by more than 10:1.*aspect_ratio"):
        open_image(saved(Image.new("L", size)), limits)


def test_a_side_that_would_cost_too_much_to_resize_is_refused():
    with pytest.raises(InvalidMedia, match="is 300000x1, the limit of a side is 262144 pixels: cut it into pieces"):
        open_image(hollow_png(300_000, 1))


@pytest.mark.parametrize("size", [(0, 0), (0, 9), (9, 0)])
def test_a_picture_without_pixels_is_refused(make_preparer, size):
    for data in (hollow_png(*size), saved(Image.new("L", (9, 9)), "BMP")[:18] + struct.pack("<ii", *size) + bytes(28)):
        with pytest.raises(InvalidMedia):
            open_image(data)
    with pytest.raises(InvalidMedia, match=f"is {size[0]}x{size[1]}: each side needs at least one pixel"):
        make_preparer().chat([Message("user", "Hi", 1)], [Image.new("RGB", size)], SamplingParams())


def hollow_png(width: int, height: int) -> bytes:
    """A PNG header of this size without any pixel data behind it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_100_megapixels_are_refused_with_value_limit_and_remedy():
    wanted = r"10000x10001 = 100010000 pixels, the limit is 89478485: scale it down, or raise max_image_pixels"
    with pytest.raises(InvalidMedia, match=wanted):
        open_image(hollow_png(10000, 10001))


def test_a_decompression_bomb_is_refused_before_any_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InvalidMedia) as caught:
        open_image(hollow_png(30000, 30000))
    assert str(caught.value) == "the picture has 900000000 pixels, the limit is 89478485: scale it down."
    with pytest.raises(InvalidMedia, match=r"pixels, the limit is 178956970: scale it down\."):  # Pillow's own
        open_image(hollow_png(30000, 30000), ImageLimits(max_pixels=10**9))


def test_a_smaller_limit_holds():
    with pytest.raises(InvalidMedia, match="20x20 = 400 pixels, the limit is 399"):
        open_image(saved(Image.new("L", (20, 20))), ImageLimits(max_pixels=399))


def test_a_larger_limit_lifts_pillow_s_own():
    """What is wrong with this picture of 120 megapixels is then only that it ends after the header."""
    with pytest.raises(InvalidMedia, match="damaged or cut short"):
        open_image(hollow_png(12000, 10000), ImageLimits(max_pixels=150_000_000))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken_and_the_others_are_named(kind):
    """`animation` begins black and gets brighter."""
    reader = MediaReader().timed()
    assert max(colour(to_rgb(reader.open_image(animation(kind))))) <= 3
    assert reader.ignored.names == ("further_frames",)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_a_single_frame_leaves_nothing_to_name(kind):
    reader = MediaReader().timed()
    reader.open_image(saved(noise(), kind))
    assert not reader.ignored


@pytest.mark.parametrize("key", ["image", "image_pil"])
def test_an_animation_from_python_is_the_frame_that_it_stands_at(key):
    image = Image.open(io.BytesIO(animation("GIF")))
    image.seek(2)
    ignored = Ignored()
    reader = MediaReader().timed(ignored=ignored)
    if key == "image":
        media = read_prompts({"prompt": "Hi", "multi_modal_data": {"image": image}}, MediaReader(), ignored)[0].media
    else:
        _, media = read_messages([{"role": "user", "content": [{"image_pil": image}]}], reader)
    assert colour(to_rgb(media[0])) == pytest.approx((160, 0, 0), abs=3)
    assert ignored.names == ("further_frames",)


def test_what_one_request_left_out_is_not_named_to_the_next():
    shared = MediaReader()
    for data, names in ((animation("GIF"), ("further_frames",)), (saved(noise(), "GIF"), ())):
        ignored = Ignored()
        shared.timed(ignored=ignored).open_image(data)
        assert ignored.names == names


def test_postscript_is_never_run(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("interpreter started"))
    with pytest.raises(InvalidMedia):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


def test_errors_never_tell_where_things_are_in_memory():
    """Pillow puts the file object that it could not read into its message."""
    error = OSError(f"cannot identify image file {io.BytesIO()!r} at 0x7f0011223344")
    assert reason(error) == "cannot identify image file it at it"
    assert reason(OSError(2, "No such file")) == "No such file"
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("[Errno -5] Broken: <none>")) == "Broken: it"


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there so many times more."""
    data = saved(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(monkeypatch):
    open_image(scans(3))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InvalidMedia, match="is a JPEG of more than 100 scans, the limit"):
        open_image(scans(200))


def test_the_frames_of_an_animation_are_not_walked(monkeypatch):
    walked = []
    seek = GifImagePlugin.GifImageFile._seek
    monkeypatch.setattr(GifImagePlugin.GifImageFile, "_seek", lambda self, *a: (walked.append(a), seek(self, *a)))
    frames = [Image.new("L", (4, 4), i) for i in range(200)]
    assert further_frames(open_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert len(walked) < 5


def opens_or_refuses(data: bytes) -> None:
    try:
        image = open_image(data)
    except InvalidMedia:
        return
    assert to_rgb(image, exif_orientation=True).mode == "RGB"


@settings(max_examples=150)
@given(head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF"]), tail=st.binary())
def test_random_bytes_open_or_are_refused(head, tail):
    opens_or_refuses(head + tail)


VALID = [
    saved(noise(), "PNG"),
    saved(noise().quantize(), "PNG"),
    saved(noise(), "JPEG"),
    sideways(),
    saved(noise(), "GIF"),
    saved(noise(), "WEBP"),
    saved(noise(), "TIFF"),
    saved(noise(), "BMP"),
    saved(noise(), "AVIF"),
    animation("GIF"),
    animation("PNG"),
    animation("WEBP"),
]


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it mends
@settings(max_examples=600)
@given(
    data=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    early=st.booleans(),
    keep=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]),
)
def test_damaged_pictures_open_or_are_refused(data, changes, early, keep):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * min(len(data), 128 if early else len(data)))] = value
    opens_or_refuses(bytes(damaged[: int(keep * len(data))]))
