"""Pictures that come encoded, at the border: what is taken, in which forms, and what is said of the rest."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inputs.media.test_tensor_file import numpy_file, saved
from tests.tiny import TWINS, write_original
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig, InvalidField, InvalidMedia, InvalidRequest
from tilewise.inputs.media.arrays import EmbeddingForm
from tilewise.inputs.media.cache import MediaByUuid
from tilewise.inputs.media.limits import MediaBudget, MediaLimits
from tilewise.inputs.media.reader import MediaReader
from tilewise.inputs.media.tensor_file import write_safetensors
from tilewise.inputs.media.tiling import EncodedPicture
from tilewise.inputs.messages import read_messages
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.inputs.prompts import read_prompts

FORM = EmbeddingForm(tokens=4, hidden=8)
ROWS = torch.linspace(-3, 3, 64).reshape(2, 4, 8)
READER = MediaReader(embeddings=FORM, handles=MediaByUuid(2**20)).timed(scope="")


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def part_of(value: object, **more: object) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": value, **more}]}]


def read(value: object, reader: MediaReader = READER, **more: object) -> EncodedPicture:
    _, (picture,) = read_messages(part_of(value, **more), reader)
    assert isinstance(picture, EncodedPicture)
    return picture


def rows_of(picture: EncodedPicture) -> np.ndarray:
    return np.stack([tile.rows for tile in picture.tiles])


@pytest.mark.parametrize(
    "value",
    [
        text_of(saved(ROWS)),
        text_of(saved(ROWS.flatten(0, 1))),
        text_of(saved(ROWS.flatten(0, 1)[None])),
        text_of(numpy_file(ROWS.numpy())),
        text_of(write_safetensors("image_embeds", ROWS.numpy())),
        {"image_embeds": text_of(saved(ROWS))},
        text_of(saved(ROWS)).replace("+", "-").replace("/", "_").rstrip("="),
        text_of(saved(ROWS.double())),
        ROWS,
        ROWS.numpy(),
    ],
)
def test_forms_of_one_picture(value):
    picture = read(value)
    assert np.array_equal(rows_of(picture), ROWS.numpy())
    assert [tile.digest for tile in picture.tiles] == [tile.digest for tile in read(ROWS).tiles]


def test_bits_of_bfloat16_are_kept():
    rows = ROWS.bfloat16()
    found = rows_of(read(text_of(saved(rows))))
    assert found.dtype == np.uint16
    assert torch.equal(torch.from_numpy(found).view(torch.bfloat16), rows)
    assert rows_of(read(text_of(saved(ROWS.half())))).dtype == np.float16


def test_tiles_of_other_rows_or_dtypes_have_other_digests():
    digests = {tile.digest for rows in (ROWS, ROWS.half(), -ROWS) for tile in read(rows).tiles}
    assert len(digests) == 6
    assert read(ROWS[:1]).tiles[0].digest == read(ROWS).tiles[0].digest


HUGE = torch.full((4, 8), 65504.0)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (ROWS[..., :7], r"rows of 7 numbers, this model's have 8: encode pictures with the tower"),
        (ROWS[:, :3], r"has 6 rows \[2, 3, 8\], each tile of this model has 4: it must be \[tiles \* 4, 8\]"),
        (ROWS[:0], r"has 0 rows"),
        (ROWS[None], r"has the shape \[1, 2, 4, 8\]"),
        (ROWS[0, 0], r"has the shape \[8\]"),
        (ROWS.int(), "must be float32, float16 or bfloat16, got torch.int32"),
        (ROWS.numpy() > 0, "got bool"),
        (ROWS / 0, "-inf in row 0, column 0 is infinite; the limit is 65504 either way"),
        (torch.where(ROWS[1, 2, 3] == ROWS, torch.nan, ROWS), "nan in row 6, column 3 is no number"),
        (torch.where(ROWS[1, 2, 3] == ROWS, torch.nan, ROWS).bfloat16(), "nan in row 6, column 3 is no number"),
        (text_of(saved(HUGE.bfloat16() * 2)), "131072 in row 0, column 0 is too large"),
        (HUGE.double() * 1e300, "inf in row 0"),
        (torch.zeros(1).expand(4 * 130, 8), "has 130 tiles, the limit of a picture is 129"),
        (text_of(saved(ROWS))[:-5] + "?", "image_embeds is not valid base64"),
        (text_of(saved(ROWS))[:400], "damaged or cut short"),
        (
            "data:application/octet-stream;base64,AAAA",
            "image_embeds is not valid base64: character 5 of its data is ':'",
        ),
        (text_of(saved([ROWS])), "has EMPTY_LIST"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(value, says):
    with pytest.raises(InvalidMedia, match=says) as caught:
        read(value)
    assert caught.value.param == "messages[0].content[0]"


@pytest.mark.parametrize("value", [None, 5, [1.0], {}, {"image_embeds": 5}])
def test_parts_without_a_tensor(value):
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\]: image_embeds needs a file of a tensor"):
        read(value)


def test_the_largest_numbers_of_float16_are_taken():
    for dtype in (torch.float32, torch.float16, torch.float64):
        assert rows_of(read(HUGE.to(dtype))).max() == 65504


def test_without_the_option_nothing_is_taken():
    for value, more in ((text_of(saved(ROWS)), {}), (None, {"uuid": "a"})):
        with pytest.raises(InvalidField, match=r"content\[0\]: image_embeds are not taken without --enable-mm-embeds"):
            read(value, MediaReader(), **more)
    for given in ({"image_embeds": ROWS}, [{"image_embeds": ROWS}]):
        with pytest.raises(InvalidField, match="enable_mm_embeds=True"):
            read_prompts({"prompt": "a", "multi_modal_data": {"image": given}}, MediaReader())
    with pytest.raises(InvalidRequest, match="enable_mm_embeds=True"):
        read_prompts({"prompt": "a", "multi_modal_data": {"image": [ROWS[0]]}}, MediaReader())


def test_what_a_request_may_bring_counts():
    small = MediaLimits(file_bytes=100)
    for limits, says in (
        (small, "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB"),
        (MediaLimits(request_decoded_bytes=255), "DECODE"),
    ):
        with pytest.raises(InvalidMedia, match=says):
            read(text_of(saved(ROWS * 1.1)), replace(READER, budget=MediaBudget(limits)))
    with pytest.raises(InvalidRequest, match=r"At most 1 image\(s\) may be provided in one prompt. 2 were given"):
        read_messages(part_of(ROWS) * 2, replace(READER, limits={"image": 1}))


def test_a_uuid_names_a_picture_however_it_came():
    reader = MediaReader(embeddings=FORM, handles=MediaByUuid(2**20)).timed(scope="mine")
    first = read(text_of(saved(ROWS)), reader, uuid="a")
    assert read(None, reader, uuid="a") == first
    _, (again,) = read_messages([{"role": "user", "content": [{"type": "image_url", "uuid": "a"}]}], reader)
    assert again == first
    with pytest.raises(InvalidMedia, match="uuid 'b' names no image"):
        read(None, reader, uuid="b")
    with pytest.raises(InvalidMedia, match="uuid 'a' names no image"):
        read(None, replace(reader, scope="another"), uuid="a")
    with pytest.raises(InvalidMedia, match="too large"):
        read(HUGE * 2, reader, uuid="c")
    with pytest.raises(InvalidMedia, match="uuid 'c' names no image"):
        read(None, reader, uuid="c")


def media(value: object) -> list:
    (found,) = read_prompts({"prompt": "a", "multi_modal_data": {"image": value}}, READER)
    return [len(item.tiles) if isinstance(item, EncodedPicture) else item.size for item in found.media]


@pytest.mark.parametrize(
    ("value", "pictures"),
    [
        (ROWS.flatten(0, 1), [2]),
        (ROWS, [1, 1]),
        ([ROWS.flatten(0, 1), ROWS[0]], [2, 1]),
        ([ROWS.flatten(0, 1)[None]], [2]),
        ({"image_embeds": ROWS.flatten(0, 1)}, [2]),
        ({"image_embeds": ROWS.flatten(0, 1).numpy()}, [2]),
        ({"image_embeds": [ROWS[0], ROWS[1]]}, [1, 1]),
        ([{"image_embeds": ROWS[0]}, Image.new("RGB", (30, 40))], [1, (30, 40)]),
        (torch.rand(3, 40, 30), [(30, 40)]),
        ([torch.rand(3, 40, 30), ROWS[0]], [(30, 40), 1]),
        (np.random.default_rng(0).random((40, 30)), [(30, 40)]),
    ],
)
def test_tensors_of_multi_modal_data(value, pictures):
    """vLLM: [pictures, rows, hidden], or a list of [rows, hidden]."""
    assert media(value) == pictures


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.rand(2, 4, 9), "rows of 9 numbers"),
        ({"image_embeds": ROWS[0], "image_grid_thw": [1]}, "no option 'image_grid_thw'"),
        ({"image_embeds": "abc"}, "image_embeds must be a tensor or a list of tensors, got str"),
        ({"image_embeds": None}, "got NoneType"),
        ({"image_embeds": [1.0]}, "must be a tensor of fractions"),
    ],
)
def test_what_multi_modal_data_cannot_be(value, says):
    with pytest.raises(InvalidRequest, match=says):
        media(value)


def test_a_flash_router_needs_features(tmp_path):
    folder = str(write_original(tmp_path / "model", TWINS["InternVL3_5-1B-Flash"]))
    with pytest.raises(InvalidConfig, match="add --no-flash-router"):
        ModelInputs.of(EngineConfig(model=folder, enable_mm_embeds=True))
    assert ModelInputs.of(EngineConfig(model=folder)).embeddings is None
    found = ModelInputs.of(EngineConfig(model=folder, enable_mm_embeds=True, flash_router=False))
    assert found.embeddings == EmbeddingForm(
        found.spec.tokens_per_tile, found.checkpoint.folder.text.whole("hidden_size")
    )


def test_a_draft_model_encodes_by_itself():
    with pytest.raises(InvalidConfig, match="not possible with a draft model"):
        EngineConfig(enable_mm_embeds=True, speculative_config={"model": "demo", "num_speculative_tokens": 2})
    EngineConfig(enable_mm_embeds=True, speculative_config={"method": "ngram", "num_speculative_tokens": 2})
