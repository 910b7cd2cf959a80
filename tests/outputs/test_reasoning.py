"""Reasoning and answer, whatever the pieces are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outputs.cutting import ANY_CUT, cut
from tilewise.outputs.parts import PartsDelta, ReasoningSplitter

WORDS = ["<think>", "</think>", "<th", "</", "<", "think>", "\n", " ", "a", "图", "Because.", "<think", ">"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


def split(pieces: list[str], opened: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(opened)
    parts = [*(splitter.add(piece) for piece in pieces), splitter.finish()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


def plain(text: str, opened: bool) -> tuple[str, str]:
    """The definition: the whole text at once."""
    if not opened:
        if not text.lstrip().startswith("<think>"):
            return "", text
        text = text.lstrip().removeprefix("<think>")
    before, tag, behind = text.partition("</think>")
    return before.strip(), behind.lstrip() if tag else ""


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nIt is red.\n</think>\n\nRed.", "It is red.", "Red."),
        ("\n<think>a</think>b", "a", "b"),
        ("<think>\n\n</think>\n\nRed.", "", "Red."),
        ("Red <think>a</think>", "", "Red <think>a</think>"),
        ("<think>cut sho", "cut sho", ""),
        ("<think>a</thi", "a</thi", ""),
        ("<thi", "", "<thi"),
        ("  Red.", "", "  Red."),
        ("<think>a</think>", "a", ""),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("", "", ""),
    ],
)
def test_whole(text, reasoning, content):
    assert split([text]) == (reasoning, content)


def test_a_prompt_that_opened_the_tag():
    assert split(["It is red.\n</think>\nRed."], opened=True) == ("It is red.", "Red.")


@settings(max_examples=500)
@given(text=TEXTS, cuts=ANY_CUT, opened=st.booleans())
def test_any_cutting_gives_what_the_definition_gives(text, cuts, opened):
    assert split(cut(text, cuts), opened) == plain(text, opened)


def test_text_is_shown_as_soon_as_it_is_sure():
    splitter = ReasoningSplitter()
    assert splitter.add("<think>It is") == PartsDelta("It is")
    assert splitter.add(" red</") == PartsDelta(" red")
    assert splitter.add("think>Red") == PartsDelta("", "Red")
    assert splitter.add(".") == PartsDelta("", ".")
