"""Kernels that resize pictures against Pillow, byte for byte."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, __version__

from tilewise import resize as module
from tilewise.inputs.media.tiling import Tiling, tile_image
from tilewise.platforms.cpu import CpuPlatform
from tilewise.resize import ResizeKernels, by_pillow, down_first, resizer, windows

LIBRARY = CpuPlatform().resize_kernels
kernels_only = pytest.mark.skipif(LIBRARY is None, reason="there are no kernels here")
WIDE = (1920, 1080)
SCREENSHOT = (540, 1200)


@pytest.fixture
def kernels() -> ResizeKernels:
    assert LIBRARY is not None
    return ResizeKernels(LIBRARY)


def noise(width: int, height: int, levels: int = 256) -> Image.Image:
    """Of two levels it has the steepest edges, whose sums are beyond what a byte holds."""
    found = np.random.default_rng(width * height).integers(0, levels, (height, width, 3)) * (255 // (levels - 1))
    return Image.fromarray(found.astype(np.uint8))


@kernels_only
@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    to=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    levels=st.sampled_from([2, 256]),
)
@example(size=(6, 6), to=(6, 6), levels=256)  # nothing to do
@example(size=(6, 2), to=(448, 448), levels=2)  # as few pixels as kernels take
@example(size=(5, 100), to=(448, 448), levels=256)  # fewer
@example(size=(600, 3), to=(600, 1), levels=256)
@example(size=(700, 700), to=(3, 3), levels=256)  # hundreds of inputs of each output
def test_kernels_find_the_bytes_of_pillow(size, to, levels):
    picture = noise(*size, levels)
    assert np.array_equal(ResizeKernels(LIBRARY)(picture, to)[0], by_pillow(picture, to)[0])


@kernels_only
@pytest.mark.parametrize("size", [WIDE, WIDE[::-1], SCREENSHOT, (4032, 3024), (447, 449), (448, 448), (4000, 41)])
def test_tiles_are_those_of_pillow(kernels, size):
    picture = noise(*size)
    assert np.array_equal(tile_image(picture, Tiling(), kernels), tile_image(picture, Tiling()))


@kernels_only
def test_several_sizes_at_once(kernels):
    picture = noise(70, 50)
    sizes = (30, 20), (70, 50), (90, 91)
    for found, size in zip(kernels(picture, *sizes), sizes, strict=True):
        assert np.array_equal(found, by_pillow(picture, size)[0])


@kernels_only
@pytest.mark.parametrize("first", [True, False])
def test_both_orders_are_those_of_pillow_one_after_the_other(kernels, monkeypatch, first):
    """Whatever order the Pillow that is installed would choose."""
    monkeypatch.setattr(module, "down_first", lambda size, to: first)
    picture, between = noise(90, 300), (90, 40) if first else (60, 300)
    expected = by_pillow(Image.fromarray(by_pillow(picture, between)[0]), (60, 40))
    assert np.array_equal(kernels(picture, (60, 40)), expected)
    monkeypatch.setattr(module, "down_first", lambda size, to: not first)
    assert not np.array_equal(kernels(picture, (60, 40)), expected)


@kernels_only
def test_kernels_are_called_and_pillow_is_not(kernels, monkeypatch):
    monkeypatch.setattr(module, "by_pillow", None)
    kernels(noise(100, 100), (448, 448))
    with pytest.raises(TypeError):
        kernels(noise(5, 100), (448, 448))


def test_only_a_pillow_that_chooses_changes_the_height_first(monkeypatch):
    chooses = int(__version__.split(".")[0]) >= 13
    assert down_first(SCREENSHOT, (448, 448)) == chooses
    monkeypatch.setattr(module, "_CHOOSES_ORDER", True)
    assert down_first(SCREENSHOT, (448, 448))
    assert down_first((100, 449), (900, 448))
    assert not down_first((100, 448), (900, 448))
    assert not down_first(WIDE, (448, 448))
    monkeypatch.setattr(module, "_CHOOSES_ORDER", False)
    assert not down_first(SCREENSHOT, (448, 448))


@given(size=st.integers(1, 5000), outputs=st.integers(1, 5000), unit=st.sampled_from([2, 4]))
def test_windows_are_within_the_picture_and_weigh_one(size, outputs, unit):
    found = windows(size, outputs, unit)
    if found is None:
        assert size < 4 * max(1, size / outputs) + 2 + unit
        return
    assert found.taps % unit == 0
    assert (found.first >= 0).all()
    assert (found.first + found.taps <= size).all()
    upper, lower = found.weights.astype(np.int64).sum(axis=(1, 3)).T
    assert np.abs(upper * 2048 + lower - 2**22).max() <= found.taps  # each is rounded
    assert lower.min() >= 0


def test_without_kernels_it_is_pillow(tmp_path):
    assert resizer(None) is by_pillow
    assert resizer(str(tmp_path / "gone.so")) is by_pillow
