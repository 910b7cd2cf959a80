"""Files of requests, right and wrong; what is wrong is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tilewise.bench.dataset_options import DatasetChoice, RandomOptions
from tilewise.bench.datasets import DatasetSource, InvalidData
from tilewise.bench.requests import Media, SampleRequest
from tilewise.bench.tokenizer import BenchTokenizer, LocalTokenizer
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.weights.checkpoint import find_model


@pytest.fixture(scope="module")
def tokenizer() -> BenchTokenizer:
    return LocalTokenizer(Tokenizer.from_folder(find_model("demo")))


def written(folder: Path, *lines: object) -> Path:
    path = folder / "asked.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def requests(
    path: Path, name: str = "custom", tokenizer: BenchTokenizer | None = None, count: int = 100, **more
) -> list[SampleRequest]:
    output_len = more.pop("output_len", None)
    as_it_is = {"no_oversample": True, "disable_shuffle": True, "custom_output_len": -1, **more}
    choice = DatasetChoice(dataset_name=name, dataset_path=path, **as_it_is)
    return DatasetSource(RandomOptions(num_prompts=count, output_len=output_len), choice).requests(tokenizer)


def test_a_line_is_a_request(tmp_path, tokenizer):
    path = written(tmp_path, {"prompt": "a\u2028bird", "output_tokens": 7}, "", {"prompt": "b"})
    found = requests(path, tokenizer=tokenizer)
    assert [(request.prompt, request.output_tokens) for request in found] == [("a\u2028bird", 7), ("b", None)]
    assert found[1].prompt_tokens == len(tokenizer.encode("b"))
    assert {request.output_tokens for request in requests(path, custom_output_len=3)} == {3}


def test_messages_are_sent_as_they_are(tmp_path):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    (found,) = requests(written(tmp_path, {"messages": messages}))
    assert found.conversation == messages
    assert found.prompt_tokens is None


def test_pictures_are_read_from_the_files_own_folder(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = written(tmp_path, {"prompt": "What?", "image_files": ["a.png", "https://example.org/b.jpg"]})
    (found,) = requests(path, "custom_mm")
    assert found.media == (
        Media.of("image", (tmp_path / "a.png").read_bytes(), "image/png"),
        Media("image", "https://example.org/b.jpg"),
    )


def test_a_short_file_is_gone_through_again_and_a_long_one_is_cut(tmp_path):
    path = written(tmp_path, *({"prompt": str(number)} for number in range(4)))
    assert [found.prompt for found in requests(path, count=6, no_oversample=False)] == ["0", "1", "2", "3", "0", "1"]
    assert len(requests(path, count=6)) == 4
    assert len(requests(path, count=2)) == 2
    shuffled = [found.prompt for found in requests(path, disable_shuffle=False)]
    assert sorted(shuffled) == ["0", "1", "2", "3"] != shuffled


GOOD = {"prompt": "a"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "asked.jsonl, line 2 is not JSON"),
        ("[1]", "line 2 must be an object"),
        ({"promt": "a"}, r"line 2 has an unknown column 'promt'; .* Did you mean prompt\?"),
        ({"output_tokens": 3}, "line 2 needs either 'prompt' or 'messages'"),
        ({**GOOD, "messages": []}, "line 2 needs either 'prompt' or 'messages'"),
        ({"prompt": 3}, "line 2: 'prompt' must be a text, got 3"),
        ({"messages": ["a"]}, "line 2: 'messages' must be a list of objects"),
        ({**GOOD, "output_tokens": "3"}, "line 2: 'output_tokens' must be a whole number above 0, got '3'"),
        ({**GOOD, "image_files": "a.png"}, "line 2: 'image_files' must be a list of paths"),
        ({**GOOD, "image_files": ["none.png"]}, "line 2: .*none.png: no such file"),
        (
            {**GOOD, "image_files": ["page.png"]},
            "line 2: .*page.png is not a picture that can be read .it is an HTML page",
        ),
        ({**GOOD, "video_files": ["none.mp4"]}, "line 2: .*No such file"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    (tmp_path / "page.png").write_text("<html></html>")
    with pytest.raises(InvalidData, match=message):
        requests(written(tmp_path, GOOD, line), "custom_mm")


def test_columns_of_pictures_are_for_custom_mm(tmp_path):
    with pytest.raises(InvalidData, match="unknown column 'image_files'"):
        requests(written(tmp_path, {**GOOD, "image_files": []}))


def test_sharegpt_asks_the_first_question_and_wants_its_answers_length(tmp_path, tokenizer):
    question, answer = "a red bird sat in the big tree", "it has a blue star and a green leaf"
    entries = [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        {"conversations": [{"from": "human", "value": question}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": answer}]},
        {"conversations": [{"from": "human", "value": question * 2000}, {"from": "gpt", "value": answer}]},
    ]
    path = tmp_path / "share.json"
    path.write_text(json.dumps(entries))
    (found,) = requests(path, "sharegpt", tokenizer)
    assert (found.prompt, found.output_tokens) == (question, len(tokenizer.encode(answer)))
    assert [request.output_tokens for request in requests(path, "sharegpt", tokenizer, output_len=3)] == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "holds no list of conversations"),
        ("[{}]", "entry 1 has no list 'conversations'"),
        ('[{"conversations": [{}, {}]}]', "entry 1: a turn has no 'value'"),
        ("[]", "has no request that can be sent"),
    ],
)
def test_other_files_are_not_sharegpt(tmp_path, tokenizer, text, message):
    path = tmp_path / "share.json"
    path.write_text(text)
    with pytest.raises(InvalidData, match=message):
        requests(path, "sharegpt", tokenizer)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidData, match=r"--dataset-path .*none\.jsonl cannot be read"):
        requests(tmp_path / "none.jsonl")
