"""Figures of the web chat: tiles and boxes over pictures, times, and plots of a server's metrics."""

import base64
import io

import pytest
from PIL import Image

from tests.served import PICTURES
from tilewise.chat_server import Delta
from tilewise.errors import InvalidMedia
from tilewise.inputs.media.tiling import Tiling
from tilewise.outputs.boxes import read_boxes
from tilewise.ui.conversation import ChatConversation
from tilewise.ui.figures import TileGrid, box_figure, tile_figures, time_strip
from tilewise.ui.thumbnails import thumbnail_of

SMALL_PRINT = str(PICTURES / "small_print.png")


@pytest.mark.parametrize(
    ("size", "most", "line"),
    [
        ((1024, 768), 12, "1024x768: 4 columns x 3 rows + thumbnail = 13 tiles, 208 tokens"),
        ((100, 100), 1, "100x100: one tile, 16 tokens"),
    ],
)
def test_a_grid_in_words(size, most, line):
    assert TileGrid.of(size, Tiling(max_tiles=most)).line(16) == line


def test_tiles_are_drawn_as_they_came(tmp_path):
    (tmp_path / "no.png").write_bytes(b"no picture")
    files = [str(tmp_path / "no.png"), SMALL_PRINT, "film.mp4"]
    figure = tile_figures(files, Tiling(), 16, [[True] * 3 + [False] * 10])
    assert (figure.count('class="tile cached"'), figure.count('class="tile encoded"')) == (3, 9)
    assert "3 from the cache, 10 encoded now" in figure
    assert figure.count("<figure") == 1


def test_labels_are_text(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    figure = box_figure(str(tmp_path / "a.png"), read_boxes('<ref>a&b"</ref><box>[[1, 2, 3, 4]]</box>'))
    assert "a&amp;b&quot;" in figure
    assert 'x="1" y="2" width="2" height="2"' in figure


def test_a_strip_has_a_part_for_each_wait():
    exchange = ChatConversation().ask("?")
    assert time_strip(exchange) == ""
    exchange.take(Delta("a", usage={"prompt_tokens": 7, "completion_tokens": 1}))
    exchange.take(Delta("b"))
    assert "7 prompt tokens, 1 answer tokens" in time_strip(exchange)


def test_a_picture_is_small_and_told_in_its_own_size(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (3000, 1000), "red").save(file)
    found = thumbnail_of(str(file))
    shown = Image.open(io.BytesIO(base64.b64decode(found.data)))
    assert (found.size, shown.size, shown.format) == ((3000, 1000), (960, 320), "WEBP")
    Image.new("L", (10, 20)).save(file)
    assert thumbnail_of(str(file)).size == (10, 20), "the file is another one by now"


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"<svg/>", "is not a picture"), (b"\x89PNG\r\n\x1a\n", "is damaged"), (b"", "is not a picture")],
)
def test_a_file_that_is_no_picture_is_named(tmp_path, data, says):
    file = tmp_path / "a.png"
    file.write_bytes(data)
    with pytest.raises(InvalidMedia, match=f"^a.png.*{says}"):
        thumbnail_of(str(file))


def test_pictures_are_decoded_in_another_process(tmp_path, monkeypatch):
    """Whoever sees the page may send it files, and a decoder that is broken by one takes nothing with it."""
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("decoded here"))
    assert thumbnail_of(str(file)).size == (8, 8)
