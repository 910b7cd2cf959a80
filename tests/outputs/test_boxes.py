"""Boxes that answers name, read out of them and drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tilewise.outputs.boxes import Box, draw_boxes, read_boxes, without_marks

CAT = "<ref>a cat</ref><box>[[100, 200, 300, 400]]</box>"


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        (CAT, [("a cat", 100, 200, 300, 400)]),
        ("It is <ref> dog </ref> <box>[[1,2,3,4],[5,6,7,8]]</box>.", [("dog", 1, 2, 3, 4), ("dog", 5, 6, 7, 8)]),
        ("<box>[1, 2, 3, 4]</box>", [("", 1, 2, 3, 4)]),
        ("a cat[[0.5, 2, 3, 4]]", [("", 0.5, 2, 3, 4)]),
        ("a list [1, 2, 3, 4]", []),
        ("[[1, 2, 3, 4, 5]]", []),
        ("<box>[[1, 2, 3, 1001]]</box>", []),
        ("<ref>a cat</ref>", []),
        ("", []),
    ],
)
def test_boxes_are_read(text, boxes):
    assert [(box.label, *box.corners) for box in read_boxes(text)] == boxes


def test_a_reader_sees_labels():
    assert without_marks(f"There is {CAT}, and <box>[[1, 2, 3, 4]]</box>.") == "There is a cat, and [[1, 2, 3, 4]]."
    assert without_marks("half <ref>a c") == "half a c"


@given(st.text(alphabet="<>refbox/[]0123456789., a", max_size=60))
def test_any_text_can_be_read(text):
    for box in read_boxes(text):
        assert all(0 <= corner <= 1000 for corner in box.corners)
    without_marks(text)


def test_corners_lie_within_the_picture():
    assert Box("", 900, 100, 100, 1000).pixels((200, 50)) == (20, 5, 180, 50)


def test_a_box_is_drawn_where_it_is():
    picture = Image.new("L", (100, 80), 255)
    drawn = draw_boxes(picture, [Box("", 500, 500, 1000, 1000)])
    assert (drawn.size, drawn.mode) == ((100, 80), "RGB")
    assert drawn.getpixel((50, 40)) != (255, 255, 255)
    assert drawn.getpixel((20, 20)) == (255, 255, 255)
    assert picture.getpixel((50, 40)) == 255
