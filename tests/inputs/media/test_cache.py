"""The cache of cut pictures: which pictures are the same, what is kept, and threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from tilewise.config import EngineConfig
from tilewise.host import Memory
from tilewise.inputs.media.cache import CacheCounts, CutPicture, MediaCache, picture_digest
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.pieces import Message
from tilewise.inputs.prepare import Preparer, TemplateOptions
from tilewise.sampling_params import SamplingParams
from tilewise.types import Tile
from tilewise.units import GIB

TILING = Tiling(tile_size=28)
TILE_BYTES = 28 * 28 * 3


def noise(width: int = 56, height: int = 28, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, len(Image.new(mode, (1, 1)).getbands())))
    return Image.fromarray(pixels.astype(np.uint8).squeeze(), mode if mode != "P" else None)


def digest(image: Image.Image, tiling: Tiling = TILING, exif: bool = False) -> bytes:
    return picture_digest(image, tiling, exif)


def in_palette(first: tuple[int, int, int]) -> Image.Image:
    """One row of colour numbers, whose first colour is this."""
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 0, 1]))
    image.putpalette([*first, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    ("asked", "free", "kept"),
    [(None, 64, 4), (None, 16, 4), (None, 8, 2), (None, 0, 0), (6, 8, 6), (0.5, 64, 0.5), (0, 64, 0)],
)
def test_the_default_bound_is_what_memory_there_is(monkeypatch, caplog, asked, free, kept):
    """In GiB; a bound that is asked for is taken as it is."""
    monkeypatch.setattr("tilewise.host.available_memory", lambda: Memory(64 * GIB, free * GIB))
    with caplog.at_level("INFO", "tilewise"):
        assert MediaCache.of(asked).max_bytes == kept * GIB
    assert ("mm_processor_cache_gb sets it" in caplog.text) is (asked is None)


def turned(orientation: int) -> Image.Image:
    image = noise()
    image.getexif()[0x0112] = orientation
    return image


def with_transparency(index: int | None) -> Image.Image:
    image = in_palette((9, 9, 9))
    if index is not None:
        image.info["transparency"] = index
    return image


OTHERS = {
    "sides exchanged": (noise(100, 30), Image.frombytes("RGB", (30, 100), noise(100, 30).tobytes())),
    "another mode of equal bytes": (
        Image.frombytes("L", (12, 4), bytes(48)),
        Image.frombytes("RGB", (4, 4), bytes(48)),
    ),
    "another mode of equal size and bytes": (
        Image.frombytes("RGBA", (4, 4), bytes(64)),
        Image.frombytes("CMYK", (4, 4), bytes(64)),
    ),
    "another palette": (in_palette((255, 0, 0)), in_palette((0, 255, 0))),
    "another transparent colour": (with_transparency(0), with_transparency(1)),
    "no transparent colour": (with_transparency(0), with_transparency(None)),
    "one pixel": (noise(), Image.fromarray(np.asarray(noise()) ^ np.eye(28, 56, dtype=np.uint8)[..., None])),
}


@pytest.mark.parametrize("pair", OTHERS.values(), ids=OTHERS)
def test_other_pictures_have_other_digests(pair):
    first, second = map(digest, pair)
    assert first != second


def test_equal_pictures_have_equal_digests_however_they_came():
    assert digest(noise()) == digest(noise()) == digest(Image.fromarray(np.asarray(noise())))
    assert digest(in_palette((1, 2, 3))) == digest(in_palette((1, 2, 3)))


@pytest.mark.parametrize(
    "change", [{"max_tiles": 6}, {"min_tiles": 2}, {"thumbnail": False}, {"dynamic": False}, {"tile_size": 56}]
)
def test_how_it_is_cut_is_part_of_the_digest(change):
    assert digest(noise()) != digest(noise(), Tiling(**{"tile_size": 28, **change}))


def test_orientation_counts_where_pictures_are_turned():
    assert digest(turned(6)) == digest(turned(1))
    assert digest(turned(6), exif=True) != digest(turned(1), exif=True)


def cut(tiles: int, number: int = 0) -> CutPicture:
    pixels = np.full((tiles, 28, 28, 3), number, np.uint8)
    return CutPicture(tuple(Tile(bytes(16), tile) for tile in pixels), (tiles, 1), (28 * tiles, 28))


def test_the_longest_unused_go_when_bytes_run_out():
    cache = MediaCache(5 * TILE_BYTES)
    for name in (b"a", b"b"):
        cache.keep(name, cut(2))
    assert cache.find(b"a") is not None  # now b is the longest unused
    cache.keep(b"c", cut(2))
    assert (cache.find(b"b"), cache.num_bytes) == (None, 4 * TILE_BYTES)
    cache.keep(b"d", cut(5))
    assert [cache.find(name) is not None for name in (b"a", b"c", b"d")] == [False, False, True]
    assert cache.num_bytes == 5 * TILE_BYTES


def test_what_is_larger_than_the_cache_is_not_kept_and_pushes_nothing_out():
    cache = MediaCache(2 * TILE_BYTES)
    cache.keep(b"a", cut(2))
    cache.keep(b"b", cut(3))
    assert cache.find(b"a") is not None
    assert cache.find(b"b") is None


def test_kept_again_counts_once():
    cache = MediaCache(9 * TILE_BYTES)
    for _ in range(3):
        cache.keep(b"a", cut(2))
    assert cache.num_bytes == 2 * TILE_BYTES


@pytest.fixture
def caching(make_preparer):
    def make(max_bytes: int = 2**20, **options) -> Preparer:
        plain = make_preparer(config=EngineConfig(**options))
        return Preparer(plain.spec, plain.tokenizer, plain.max_model_len, plain.config, MediaCache(max_bytes))

    return make


def ask(preparer: Preparer, *media, **processor):
    message = Message(
        "user",
        "a",
        sum(isinstance(item, Image.Image) for item in media),
        tuple(len(item) for item in media if isinstance(item, list)),
    )
    return preparer.chat([message], media, SamplingParams(), TemplateOptions(processor=processor)).images


def test_a_picture_sent_again_is_not_cut_again(caching):
    preparer = caching()
    (first,), (again,) = ask(preparer, noise()), ask(preparer, noise())
    assert again.tiles is first.tiles
    assert (again.grid, again.original_size) == ((2, 1), (56, 28))
    assert preparer.cache.counts == CacheCounts(queries=2, hits=1)


def test_what_is_cut_is_the_same_with_and_without_a_cache(caching, make_preparer):
    preparer, plain = caching(), make_preparer()
    for image in (noise(), noise(mode="RGBA"), noise(mode="L"), in_palette((200, 30, 10)).resize((60, 20))):
        expected = ask(plain, image)
        assert ask(preparer, image) == ask(preparer, image) == expected
    assert preparer.cache.counts.hits == 4


def test_a_picture_and_a_frame_of_equal_pixels_are_cut_each_in_its_way(caching):
    preparer = caching()
    (whole,), (frame, again) = ask(preparer, noise()), ask(preparer, [noise(), noise()])
    assert (len(whole.tiles), len(frame.tiles)) == (3, 1)
    assert again.tiles is frame.tiles
    assert preparer.cache.counts == CacheCounts(queries=3, hits=1)


def test_options_of_a_request_make_another_entry(caching):
    preparer = caching()
    counts = [len(ask(preparer, noise(), max_dynamic_patch=patches)[0].tiles) for patches in (12, 1, 12)]
    assert counts == [3, 1, 3]
    assert preparer.cache.counts == CacheCounts(queries=3, hits=1)


def test_without_room_nothing_is_kept_or_asked(caching):
    preparer = caching(max_bytes=0)
    (first,), (again,) = ask(preparer, noise()), ask(preparer, noise())
    assert again == first
    assert again.tiles is not first.tiles
    assert (preparer.cache.counts, preparer.cache.num_bytes) == (CacheCounts(), 0)


def test_pixels_that_requests_share_cannot_be_changed(caching):
    (image,) = ask(caching(), noise())
    with pytest.raises(ValueError, match="read-only"):
        image.tiles[0].pixels[0, 0, 0] = 1


def test_threads_find_what_others_keep_and_the_books_stay_right():
    cache, start = MediaCache(40 * TILE_BYTES), threading.Barrier(4)
    found: list[int] = []

    def work(offset: int) -> None:
        start.wait()
        for step in range(2000):
            number = (step + offset) % 60
            name = number.to_bytes(1, "big")
            picture = cache.find(name)
            if picture is None:
                cache.keep(name, cut(1 + number % 3, number))
            else:
                found.append(int(picture.tiles[0].pixels[0, 0, 0]) - number)

    threads = [threading.Thread(target=work, args=(7 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [cache.find(number.to_bytes(1, "big")) for number in range(60)]
    assert sum(picture.num_bytes for picture in kept if picture) == cache.num_bytes <= 40 * TILE_BYTES
    assert set(found) == {0}
    assert cache.counts == CacheCounts(4 * 2000 + 60, len(found) + sum(picture is not None for picture in kept))
