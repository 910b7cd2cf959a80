"""Answers as they grow: text, stop strings, limits, special tokens, log-probabilities."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inputs.vocabulary import byte_letters, small_tokenizer
from tilewise.inputs.spec import HeaderIds
from tilewise.outputs.group import Detokenizer
from tilewise.sampling_params import SamplingParams
from tilewise.types import SampledToken

TOKENIZER = small_tokenizer()
END = TOKENIZER.special_id("<|im_end|>")
BOX = TOKENIZER.special_id("<box>")
LETTERS = {byte: TOKENIZER.find_id(letter) for byte, letter in byte_letters().items()}


def tokens(text: str) -> list[int]:
    return TOKENIZER.encode_text(text)


def split_tokens(pieces: list[str]) -> list[int]:
    """The pieces' own tokens: borders stand where the pieces do, whatever the tokenizer would have merged."""
    return [token for piece in pieces for token in tokens(piece)]


def run(ids: list[int], finish: str | None = "length", **sampling) -> tuple[Detokenizer, list[str]]:
    """Feed tokens until the answer is finished; the last one carries `finish`."""
    answer = Detokenizer(TOKENIZER, SamplingParams(**{"max_tokens": None, **sampling}))
    shown = []
    for place, token in enumerate(ids, 1):
        shown.append(answer.add(SampledToken(token), finish if place == len(ids) else None, None))
        if answer.finished:
            break
    assert "".join(shown) == answer.output.text
    return answer, shown


@pytest.mark.parametrize("text", ["the red panda", "图片的内容。", "👩‍👩‍👧 🦊!", "é\n\tñ", "\ufffd"])
def test_pieces_add_up_to_the_whole_text(text):
    answer, _ = run(tokens(text))
    assert answer.output.text == text
    assert answer.output.token_ids == tokens(text)


@settings(max_examples=300)
@given(text=st.text(min_size=1))
def test_pieces_of_any_text_add_up(text):
    assert run(tokens(text), skip_special_tokens=False)[0].output.text == text


@settings(max_examples=400)
@given(
    data=st.lists(st.sampled_from(b"A \xc3\xa9\xe5\x9b\xbe\xf0\x9f\xa6\x8a\xef\xbf\xbd\xff"), min_size=1, max_size=10)
)
def test_broken_characters_give_the_whole_decode(data):
    ids = [LETTERS[byte] for byte in data]
    answer, _ = run(ids)
    assert answer.output.text == TOKENIZER.decode(ids) == bytes(data).decode(errors="replace")


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, TOKENIZER.vocab_size - 1), min_size=1, max_size=12), skip=st.booleans())
def test_any_tokens_of_the_vocabulary_give_the_whole_decode(ids, skip):
    assert run(ids, skip_special_tokens=skip)[0].output.text == TOKENIZER.decode(ids, skip)


def test_incomplete_characters_are_held_back():
    answer = Detokenizer(TOKENIZER, SamplingParams())
    *first, last = tokens("狐")
    assert first
    assert [answer.add(SampledToken(token), None, None) for token in first] == [""] * len(first)
    assert answer.add(SampledToken(last), None, None) == "狐"


def test_at_the_length_limit_an_incomplete_character_shows_as_such():
    answer, _ = run([*tokens("a "), tokens("狐")[0]])
    assert answer.output.text == "a \ufffd"
    assert answer.output.finish_reason == "length"


def test_unfinished_answers_have_no_reason():
    answer, _ = run(tokens("abc"), finish=None)
    assert not answer.finished
    assert answer.output.finish_reason is None


def test_the_end_token_is_not_shown():
    answer, shown = run([*tokens("yes"), END], finish="stop")
    assert (answer.output.text, answer.output.finish_reason, answer.output.stop_reason) == ("yes", "stop", None)
    assert answer.output.token_ids == [*tokens("yes"), END]
    assert shown[-1] == ""


def test_a_stop_token_is_named_as_the_reason():
    answer = Detokenizer(TOKENIZER, SamplingParams())
    answer.add(SampledToken(65), "stop", 65)
    assert (answer.output.text, answer.output.stop_reason) == ("", 65)


def test_a_stop_token_is_shown_when_asked_for():
    answer = Detokenizer(TOKENIZER, SamplingParams(include_stop_str_in_output=True, skip_special_tokens=False))
    answer.add(SampledToken(END), "stop", END)
    assert answer.output.text == "<|im_end|>"


def test_a_stop_string_across_tokens_is_cut():
    answer, shown = run(split_tokens(["ans", "wer E", "N", "D of", " it"]), stop="END")
    assert answer.output.text == "answer "
    assert (answer.output.finish_reason, answer.output.stop_reason) == ("stop", "END")
    assert not any("E" in piece for piece in shown)


def test_the_stop_string_is_kept_when_asked_for_and_nothing_after_it():
    answer, _ = run(split_tokens(["answer E", "ND of"]), stop="END", include_stop_str_in_output=True)
    assert answer.output.text == "answer END"


def test_of_several_stop_strings_the_first_in_the_text_ends_it():
    answer, _ = run(split_tokens(["one, two; three"]), stop=[";", ","])
    assert (answer.output.text, answer.output.stop_reason) == ("one", ",")


def test_a_false_start_of_a_stop_string_is_shown_in_the_end():
    assert run(split_tokens(["THE E", "N", "X"]), stop="END")[0].output.text == "THE ENX"
    assert run(split_tokens(["THE EN"]), stop="END")[0].output.text == "THE EN"
    assert run([*split_tokens(["THE EN"]), END], stop="END", finish="stop")[0].output.text == "THE EN"


def test_a_stop_string_that_overlaps_its_own_false_start():
    assert run(split_tokens(["x", "a", "a", "b", "y"]), stop="ab")[0].output.text == "xa"


def test_a_stop_string_wins_over_the_length_limit():
    assert run(split_tokens(["a", "END"]), stop="END")[0].output.finish_reason == "stop"


PIECES = st.lists(st.sampled_from(["a", "b", "ab", "c", "ba", "图", "E", "N", "D", "EN", " "]), min_size=1, max_size=14)
STOPS = st.lists(st.text(alphabet="abEND图", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=500)
@given(pieces=PIECES, stops=STOPS)
def test_no_stop_string_ever_leaks(pieces, stops):
    ids = split_tokens(pieces)
    answer, _ = run(ids, stop=stops)
    text, whole = answer.output.text, "".join(pieces)
    assert not any(stop in text for stop in stops)
    assert whole.startswith(text)
    if answer.output.finish_reason == "stop":
        assert whole.startswith(text + answer.output.stop_reason)
    else:
        assert text == whole


@settings(max_examples=200)
@given(pieces=PIECES, stops=STOPS)
def test_with_the_stop_string_kept_the_text_ends_with_it(pieces, stops):
    answer, _ = run(split_tokens(pieces), stop=stops, include_stop_str_in_output=True)
    if answer.output.finish_reason == "stop":
        assert answer.output.text.endswith(answer.output.stop_reason)
        assert not any(stop in answer.output.text[:-1] for stop in stops)


@settings(max_examples=200)
@given(pieces=PIECES, stops=STOPS)
def test_what_could_not_become_a_stop_string_is_shown_at_once(pieces, stops):
    """Held back is never more than the longest stop string less one character."""
    answer = Detokenizer(TOKENIZER, SamplingParams(stop=stops, max_tokens=None))
    seen: list[int] = []
    for token in split_tokens(pieces):
        answer.add(SampledToken(token), None, None)
        seen.append(token)
        if answer.finished:
            break
        whole = TOKENIZER.decode(seen).rstrip("\ufffd")
        assert len(whole) - len(answer.output.text) < max(map(len, stops))


def test_no_stop_string_counts_before_min_tokens():
    ids = split_tokens(["E", "N", "D", " x", "E", "N", "D"])
    answer, _ = run(ids, stop="END", min_tokens=3)
    assert answer.output.text.startswith("END x")
    assert answer.output.finish_reason == "stop"
    assert len(answer.output.token_ids) == len(ids)


def test_min_tokens_one_short_of_the_stop_string_lets_it_stop():
    answer, _ = run(split_tokens(["E", "N", "D", "x"]), stop="END", min_tokens=2)
    assert (answer.output.text, answer.output.finish_reason) == ("", "stop")


def test_special_tokens_are_skipped_or_shown():
    ids = [*tokens("a"), BOX, *tokens("b")]
    assert run(ids)[0].output.text == "ab"
    assert run(ids, skip_special_tokens=False)[0].output.text == "a<box>b"


def test_added_tokens_that_are_not_special_are_always_shown():
    think = TOKENIZER.special_id("<think>")
    assert run([think, *tokens("b")])[0].output.text == "<think>b"


def test_logprobs_are_collected_with_the_chosen_token_and_the_alternatives():
    answer = Detokenizer(TOKENIZER, SamplingParams(logprobs=2))
    a, b, c = tokens("a")[0], tokens("b")[0], tokens("c")[0]
    answer.add(SampledToken(a, -0.5, 1, ((a, -0.5), (b, -1.5))), None, None)
    answer.add(SampledToken(c, -3.0, 7, ((a, -0.25), (b, -2.0))), "length", None)
    first, second = answer.output.logprobs
    assert {i: (entry.logprob, entry.rank, entry.decoded_token) for i, entry in first.items()} == {
        a: (-0.5, 1, "a"),
        b: (-1.5, 2, "b"),
    }
    assert {i: (entry.logprob, entry.rank) for i, entry in second.items()} == {
        a: (-0.25, 1),
        b: (-2.0, 2),
        c: (-3.0, 7),
    }
    assert answer.output.cumulative_logprob == -3.5


def test_logprobs_name_special_tokens_even_when_the_text_skips_them():
    answer = Detokenizer(TOKENIZER, SamplingParams(logprobs=0))
    answer.add(SampledToken(END, -0.1, 1), "stop", None)
    assert answer.output.logprobs[0][END].decoded_token == "<|im_end|>"


def test_without_logprobs_asked_for_there_are_none():
    answer = Detokenizer(TOKENIZER, SamplingParams(), index=3)
    answer.add(SampledToken(65, -0.5, 1), None, None)
    assert answer.output.logprobs is None
    assert answer.output.cumulative_logprob is None
    assert answer.output.index == 3


HEADER = HeaderIds(frozenset({TOKENIZER.special_id("<|im_start|>")}), TOKENIZER.special_id("<think>"))


def with_header(ids: list[int], **sampling) -> str:
    answer = Detokenizer(TOKENIZER, SamplingParams(max_tokens=None, **sampling), header=HEADER)
    for place, token in enumerate(ids, 1):
        answer.add(SampledToken(token), "length" if place == len(ids) else None, None)
    return answer.output.text


def test_headers_of_messages_are_not_text():
    """As GPT-OSS writes: a header of control tokens and a channel's name, then text, perhaps several times."""
    start, end = *HEADER.starts, HEADER.end
    ids = [start, *tokens("final"), end, *tokens("a cat"), start, *tokens("final"), end, *tokens(" sat")]
    text = with_header(ids, skip_special_tokens=False)
    assert with_header(ids) == "a cat sat"
    assert text == "<|im_start|>final<think>a cat<|im_start|>final<think> sat"


def test_the_end_of_a_header_without_its_start_is_a_token_like_others():
    assert with_header([*tokens("a"), HEADER.end, *tokens("b")]) == "a<think>b"


def test_incomplete_characters_after_a_header_show_at_the_limit():
    start, end = *HEADER.starts, HEADER.end
    assert with_header([start, *tokens("x"), end, *tokens("a"), LETTERS[0xE5]]) == "a\ufffd"


@pytest.mark.parametrize(("top", "ranks"), [(((6, -0.1), (5, -1.0)), ()), (((9, -9.0), (6, -0.1)), (4, 1))])
def test_the_chosen_token_comes_first_among_its_scores(top: tuple, ranks: tuple[int, ...]):
    """As in vLLM, whose clients take the first; alternatives that were named keep the ranks they came with."""
    answer = Detokenizer(TOKENIZER, SamplingParams(logprobs=2))
    answer.add(SampledToken(5, -1.0, 2, top, ranks), "length", None)
    (scores,) = answer.output.logprobs or ()
    assert [next(iter(scores)), scores[5].rank, scores[6].rank] == [5, 2, 1]
    assert 9 not in scores or scores[9].rank == 4
