"""Tiling against the reference rule, re-stated here, and against transformers' processors for the -hf checkpoints."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tilewise.errors import InvalidRequest, UnknownOption
from tilewise.inputs.media.tiling import MAX_TILES, Tiling, candidate_grids, choose_grid, count_tiles, tile_image

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
BUDGETS = (1, 6, 12, 24, 40)

VECTORS = [
    *[((side, side), (1, 1), 1) for side in (10, 448, 633)],
    *[((side, side), (2, 2), 5) for side in (634, 950)],
    *[((side, side), (3, 3), 10) for side in (951, 1000)],
    ((896, 448), (2, 1), 3),
    ((500, 1000), (1, 2), 3),
    *[(size, (4, 2), 9) for size in ((1920, 1080), (1280, 720), (3840, 2160))],
    ((2480, 3508), (2, 3), 7),
    *[(size, (4, 3), 13) for size in ((800, 600), (1024, 768), (640, 480), (333, 250))],
    ((100, 2000), (1, 12), 13),
]


def reference_ratios(fewest: int, most: int) -> list[tuple[int, int]]:
    """The reference builds a set, tile count by tile count, then sorts it by the number of tiles."""
    ratios = set()
    for n in range(fewest, most + 1):
        for columns in range(1, n + 1):
            for rows in range(1, n + 1):
                if fewest <= columns * rows <= most:
                    ratios.add((columns, rows))
    return sorted(ratios, key=lambda ratio: ratio[0] * ratio[1])


def reference_grid(width: int, height: int, ratios: list[tuple[int, int]], side: int = 448) -> tuple[int, int]:
    smallest_gap = float("inf")
    winner = (1, 1)
    for ratio in ratios:
        gap = abs(width / height - ratio[0] / ratio[1])
        if gap < smallest_gap:
            smallest_gap, winner = gap, ratio
        elif gap == smallest_gap and width * height > 0.5 * side * side * ratio[0] * ratio[1]:
            winner = ratio
    return winner


def reference_tiles(image: Image.Image, grid: tuple[int, int], side: int, thumbnail: bool) -> list[Image.Image]:
    columns, rows = grid
    resized = image.resize((side * columns, side * rows))
    boxes = [
        (column * side, row * side, (column + 1) * side, (row + 1) * side)
        for row in range(rows)
        for column in range(columns)
    ]
    tiles = [resized.crop(box) for box in boxes]
    if thumbnail and len(tiles) != 1:
        tiles.append(image.resize((side, side)))
    return tiles


REFERENCE_RATIOS = {most: reference_ratios(1, most) for most in BUDGETS}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("size", "grid", "tiles"), VECTORS)
def test_known_sizes(size, grid, tiles):
    assert choose_grid(*size, Tiling()) == grid
    assert count_tiles(grid, thumbnail=True) == tiles


def test_thirteen_tiles_are_3328_tokens():
    assert count_tiles(choose_grid(800, 600, Tiling()), thumbnail=True) * 256 == 3328


def test_twelve_tiles_have_35_candidates():
    assert len(candidate_grids(1, 12)) == 35


@pytest.mark.parametrize("most", BUDGETS)
def test_candidates_are_the_reference_set_with_the_fewest_tiles_first(most):
    grids = candidate_grids(1, most)
    assert set(grids) == set(REFERENCE_RATIOS[most])
    assert [c * r for c, r in grids] == sorted(c * r for c, r in grids)


@pytest.mark.parametrize(("fewest", "most"), [(2, 6), (7, 12), (11, 11)])
def test_candidates_respect_the_minimum(fewest, most):
    assert set(candidate_grids(fewest, most)) == set(reference_ratios(fewest, most))


@pytest.mark.parametrize("most", BUDGETS)
@settings(max_examples=400)
@given(width=st.integers(2, 6000), height=st.integers(2, 6000))
@example(633, 633)
@example(634, 634)
def test_grid_is_the_reference_grid(most, width, height):
    assert choose_grid(width, height, Tiling(max_tiles=most)) == reference_grid(width, height, REFERENCE_RATIOS[most])


@pytest.mark.parametrize("most", BUDGETS)
@settings(max_examples=200)
@given(columns=st.integers(1, 12), rows=st.integers(1, 12), unit=st.integers(10, 900))
def test_ties_between_grids_of_one_aspect_follow_the_reference(most, columns, rows, unit):
    width, height = columns * unit, rows * unit
    assert choose_grid(width, height, Tiling(max_tiles=most)) == reference_grid(width, height, REFERENCE_RATIOS[most])


@pytest.mark.parametrize("most", BUDGETS)
def test_grid_is_the_reference_grid_over_a_sweep(most):
    sizes = [(w, h) for w in range(2, 3000, 97) for h in range(3, 3000, 101)]
    tiling = Tiling(max_tiles=most)
    ours = [choose_grid(*size, tiling) for size in sizes]
    assert ours == [reference_grid(*size, REFERENCE_RATIOS[most]) for size in sizes]


@pytest.mark.parametrize("size", [(800, 600), (600, 800), (1000, 1000), (500, 1000), (448, 448), (300, 310), (60, 700)])
def test_pixels_are_bit_for_bit_those_of_resize_and_crop(size):
    image = noise(*size)
    expected = reference_tiles(image, reference_grid(*size, REFERENCE_RATIOS[12]), 448, thumbnail=True)
    tiles = tile_image(image, Tiling())
    assert tiles.dtype == np.uint8
    assert np.array_equal(tiles, np.stack([np.asarray(tile) for tile in expected]))


@settings(max_examples=40)
@given(width=st.integers(2, 400), height=st.integers(2, 400), thumbnail=st.booleans(), most=st.sampled_from(BUDGETS))
def test_pixels_are_those_of_resize_and_crop_for_small_tiles(width, height, thumbnail, most):
    image = noise(width, height, seed=width)
    grid = reference_grid(width, height, REFERENCE_RATIOS[most], side=28)
    expected = reference_tiles(image, grid, 28, thumbnail)
    tiles = tile_image(image, Tiling(tile_size=28, max_tiles=most, thumbnail=thumbnail))
    assert np.array_equal(tiles, np.stack([np.asarray(tile) for tile in expected]))


def test_tiles_go_row_by_row_and_the_thumbnail_is_last():
    colours = [(i * 40, 0, 0) for i in range(6)]
    image = Image.new("RGB", (3 * 448, 2 * 448))
    for i, colour in enumerate(colours):
        image.paste(colour, (i % 3 * 448, i // 3 * 448, (i % 3 + 1) * 448, (i // 3 + 1) * 448))
    tiles = tile_image(image, Tiling())
    assert [tuple(tile[224, 224]) for tile in tiles[:6]] == colours
    assert len(tiles) == 7
    assert len(np.unique(tiles[6][..., 0])) >= 6


def hf_values(processor_class, image: Image.Image, tensors: str) -> np.ndarray:
    """Pixels [tiles, 3, 448, 448] as transformers normalises them, with the settings of the -hf checkpoints."""
    processor = processor_class(
        size={"height": 448, "width": 448},
        crop_to_patches=True,
        min_patches=1,
        max_patches=12,
        image_mean=MEAN.tolist(),
        image_std=STD.tolist(),
    )
    return np.asarray(processor(image, return_tensors=tensors)["pixel_values"])


def normalised(tiles: np.ndarray) -> np.ndarray:
    return ((tiles / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


HF_SIZES = [(640, 300), (700, 1000), (448, 448), (64, 64)]


@pytest.mark.parametrize("size", HF_SIZES)
def test_transformers_pil_processor_gives_the_same_tensors_up_to_float32(size):
    """Tolerance 1e-6: the pixels are the same, only float32 against float64 arithmetic differs."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    image = noise(*size)
    theirs = hf_values(GotOcr2ImageProcessorPil, image, "np")
    ours = normalised(tile_image(image, Tiling()))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", HF_SIZES)
def test_transformers_torch_processor_is_within_two_levels(size):
    """It resizes by another implementation of the same filter: a few pixels differ by one or two of 255 levels.

    The picture is smooth: in pure noise, where the filter overshoots everywhere, single pixels are further apart.
    """
    pytest.importorskip("torchvision")
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

    image = noise(40, 40).resize(size, Image.Resampling.BICUBIC)
    theirs = hf_values(GotOcr2ImageProcessor, image, "pt").transpose(0, 2, 3, 1) * STD + MEAN
    ours = tile_image(image, Tiling())
    assert ours.shape == theirs.shape
    difference = np.abs(np.rint(theirs * 255) - ours)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.1


def test_overrides_by_the_names_of_the_request():
    options = {
        "min_dynamic_patch": 2, "max_dynamic_patch": 6, "dynamic_image_size": False, "use_thumbnail": False
    }  # fmt: skip
    assert Tiling().override(options) == Tiling(min_tiles=2, max_tiles=6, dynamic=False, thumbnail=False)


@pytest.mark.parametrize("options", [None, {}])
def test_no_overrides_change_nothing(options):
    assert Tiling(max_tiles=7).override(options) == Tiling(max_tiles=7)


@pytest.mark.parametrize("most", [1, 6, 24])
def test_max_dynamic_patch_counts_tiles_without_the_thumbnail(most):
    tiling = Tiling().override({"max_dynamic_patch": most})
    columns, rows = choose_grid(800, 600, tiling)
    assert columns * rows <= most
    assert (columns, rows) == reference_grid(800, 600, reference_ratios(1, most))


def test_min_dynamic_patch_forces_tiles():
    tiling = Tiling(tile_size=28).override({"min_dynamic_patch": 4})
    assert len(tile_image(noise(28, 28), tiling)) >= 5


def test_without_dynamic_tiling_there_is_one_tile_and_no_thumbnail():
    image = noise(800, 600)
    tiles = tile_image(image, Tiling().override({"dynamic_image_size": False}))
    assert np.array_equal(tiles, np.asarray(image.resize((448, 448)))[None])


def test_without_thumbnail_only_the_grid_remains():
    whole, cut = tile_image(noise(800, 600), Tiling()), tile_image(noise(800, 600), Tiling(thumbnail=False))
    assert np.array_equal(whole[:12], cut)


def test_a_smaller_maximum_lowers_the_checkpoint_s_minimum():
    assert Tiling(min_tiles=4).override({"max_dynamic_patch": 2}) == Tiling(min_tiles=1, max_tiles=2)


def test_unknown_override_offers_the_nearest():
    with pytest.raises(UnknownOption, match=r"no option 'max_dynamic_patches'.*Did you mean max_dynamic_patch\?"):
        Tiling().override({"max_dynamic_patches": 6})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("max_dynamic_patch", "six", "int"),
        ("max_dynamic_patch", 6.5, "int"),
        ("max_dynamic_patch", True, "int"),
        ("use_thumbnail", 1, "bool"),
        ("dynamic_image_size", None, "bool"),
    ],
)
def test_override_of_a_wrong_type_names_value_and_type(name, value, kind):
    with pytest.raises(InvalidRequest, match=f"{name}={value!r} must be of type {kind}"):
        Tiling().override({name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"min_dynamic_patch": 7, "max_dynamic_patch": 6},
        {"min_dynamic_patch": 13},
        {"min_dynamic_patch": 0},
        {"max_dynamic_patch": 0},
        {"max_dynamic_patch": -1},
    ],
)
def test_minimum_above_maximum_or_below_one_is_refused(options):
    with pytest.raises(InvalidRequest, match="need 1 <= min_dynamic_patch <= max_dynamic_patch"):
        Tiling().override(options)


def test_a_huge_maximum_is_refused_with_the_limit():
    with pytest.raises(InvalidRequest, match=f"max_dynamic_patch=1000000 is above the limit of {MAX_TILES}"):
        Tiling().override({"max_dynamic_patch": 1_000_000})
