"""Figures of the web chat: tiles and boxes over pictures, times, and plots of a server's metrics."""

import pytest
from PIL import Image

from tests.served import PICTURES
from tilewise.chat_server import Delta
from tilewise.inputs.media.tiling import Tiling
from tilewise.outputs.boxes import read_boxes
from tilewise.ui.conversation import ChatConversation
from tilewise.ui.figures import TileGrid, box_figure, tile_figures, time_strip

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
