"""Random requests: lengths, seeds, what they share, and their media."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from tilewise.bench.client import Target
from tilewise.bench.dataset_options import Bucket, DatasetChoice, RandomOptions, read_buckets
from tilewise.bench.datasets import DatasetSource
from tilewise.bench.random_requests import RandomText, with_media
from tilewise.bench.requests import CHAT, SampleRequest
from tilewise.bench.tokenizer import BenchTokenizer, LocalTokenizer, ServerTokenizer, find_tokenizer
from tilewise.errors import InvalidConfig
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.weights.checkpoint import find_model


@pytest.fixture(scope="module")
def tokenizer() -> BenchTokenizer:
    return LocalTokenizer(Tokenizer.from_folder(find_model("demo")))


def text_of(tokenizer: BenchTokenizer, seed: int = 0, count: int = 40, **lengths) -> list[SampleRequest]:
    return list(RandomText(tokenizer, seed).requests(RandomOptions(num_prompts=count, **lengths)))


@pytest.mark.parametrize("seed", range(3))
def test_prompts_have_exactly_the_tokens_that_were_asked_for(tokenizer, seed):
    found = text_of(tokenizer, seed, input_len=200, random_output_len=32)
    assert {len(tokenizer.encode(request.prompt)) for request in found} == {200}
    assert {(request.prompt_tokens, request.output_tokens) for request in found} == {(200, 32)}
    assert len({request.prompt[:20] for request in found}) == 40, "no two begin alike"


def test_lengths_are_drawn_from_the_whole_range(tokenizer):
    found = text_of(tokenizer, count=300, random_input_len=10, output_len=4, random_range_ratio=0.5)
    assert set(Counter(request.prompt_tokens for request in found)) == set(range(5, 16))
    assert {request.output_tokens for request in found} == {2, 3, 4, 5, 6}


def test_a_prefix_is_shared(tokenizer):
    found = text_of(tokenizer, count=2, input_len=20, output_len=1, random_prefix_len=30)
    first, second = (tokenizer.encode(request.prompt) for request in found)
    assert len(first) == 50
    assert first[:25] == second[:25]
    assert first[30:] != second[30:]


def test_a_seed_makes_the_same_requests_and_another_one_others(tokenizer):
    drawn = RandomOptions(num_prompts=3, seed=5, input_len=20, output_len=4, random_mm_bucket_config="{(32, 48, 1): 1}")
    source = DatasetSource(drawn, DatasetChoice(dataset_name="random-mm"))
    assert source.requests(tokenizer) == source.requests(tokenizer)
    other = DatasetSource(replace(drawn, seed=6), source.choice).requests(tokenizer)
    for ours, theirs in zip(source.requests(tokenizer), other, strict=True):
        assert ours.prompt != theirs.prompt
        assert ours.media != theirs.media


def test_a_server_tokenizes_too(demo_url, tokenizer):
    with find_tokenizer(None, "no-folder", "demo", Target(demo_url, CHAT.endpoint, CHAT)) as found:
        compare(found, tokenizer)
        assert found.source == f"{demo_url}/tokenize"


def compare(theirs: BenchTokenizer, tokenizer: BenchTokenizer) -> None:
    assert isinstance(theirs, ServerTokenizer)
    assert theirs.encode("a red bird") == tokenizer.encode("a red bird")
    assert theirs.decode(tokenizer.encode("a red bird")) == tokenizer.decode(tokenizer.encode("a red bird"))
    assert set(theirs.ordinary) <= set(tokenizer.ordinary)
    found = list(RandomText(theirs, 0).requests(RandomOptions(num_prompts=2, input_len=30, output_len=4)))
    assert [len(tokenizer.encode(request.prompt)) for request in found] == [30, 30]


def test_a_server_that_does_not_tokenize_is_named(demo_url):
    target = Target(f"{demo_url}/none", CHAT.endpoint, CHAT)
    with (
        find_tokenizer(None, "no-folder", "m", target) as found,
        pytest.raises(InvalidConfig, match=r"no tokenizer for m: .*HTTP 404.*--tokenizer FOLDER, or do without"),
    ):
        found.encode("a")


def test_repeated_prefixes(tokenizer):
    choice = DatasetChoice(
        dataset_name="prefix_repetition",
        prefix_repetition_prefix_len=40,
        prefix_repetition_suffix_len=10,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_output_len=5,
    )
    found = DatasetSource(RandomOptions(num_prompts=9), choice).requests(tokenizer)
    assert {request.output_tokens for request in found} == {5}
    beginnings = Counter(tuple(tokenizer.encode(request.prompt)[:35]) for request in found)
    assert sorted(beginnings.values()) == [3, 3, 3]
    assert {request.prompt_tokens for request in found} == {50}
    assert len({request.prompt for request in found}) == 9
    with pytest.raises(InvalidConfig, match="--num-prompts 2 is below --prefix-repetition-num-prefixes 3"):
        DatasetSource(RandomOptions(num_prompts=2), choice).requests(tokenizer)


def media_options(buckets: str = "{(8, 8, 1): 1}", **options) -> RandomOptions:
    named = {f"random_mm_{name}": value for name, value in options.items()}
    return RandomOptions(random_mm_bucket_config=buckets, **named)


def media_of(options: RandomOptions, count: int = 200) -> list[SampleRequest]:
    return list(with_media([SampleRequest("", 0, 1)] * count, options, np.random.default_rng(0)))


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_pictures_come_in_their_sizes_by_weight():
    options = media_options("{(16, 32, 1): 3, (24, 16, 1): 1, (8, 8, 1): 0}")
    sizes = Counter(opened(request.media[0].url).size for request in media_of(options))
    assert set(sizes) == {(32, 16), (16, 24)}
    assert sizes[32, 16] / 200 == pytest.approx(0.75, abs=0.1)


def test_no_two_pictures_are_alike():
    found = media_of(media_options("{(16, 16, 1): 1}", base_items_per_request=2), count=20)
    assert len({item.url for request in found for item in request.media}) == 40


def test_the_number_of_media_is_drawn_and_limited():
    options = media_options(base_items_per_request=2, num_mm_items_range_ratio=0.5)
    assert {len(request.media) for request in media_of(options)} == {1, 2, 3}
    limited = replace(options, random_mm_limit_mm_per_prompt={"image": 2})
    assert {len(request.media) for request in media_of(limited)} == {1, 2}


def test_a_kind_that_has_reached_its_limit_is_drawn_no_more():
    buckets, limits = "{(8, 8, 1): 0.1, (16, 16, 2): 0.9}", {"image": 5, "video": 1}
    for request in media_of(media_options(buckets, base_items_per_request=3, limit_mm_per_prompt=limits), 20):
        assert Counter(item.kind for item in request.media)["video"] <= 1
        assert len(request.media) == 3


def test_a_video_has_its_frames():
    (request,) = media_of(media_options("{(16, 32, 5): 1}"), 1)
    with av.open(io.BytesIO(base64.b64decode(request.media[0].url.partition(",")[2]))) as container:
        frames = [frame.to_image().size for frame in container.decode(video=0)]
    assert frames == [(32, 16)] * 5
    assert request.media[0].part["type"] == "video_url"


def test_buckets_are_written_as_in_vllm():
    assert read_buckets("{(256, 512, 1): 0.5, '(8, 8, 2)': 1}") == (Bucket(256, 512, 1, 0.5), Bucket(8, 8, 2, 1.0))


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "{(1, 2): 1}", "{(0, 2, 1): 1}", "{(2, 2, 1): -1}", "{(2, 2, 1): 'x'}"]
)
def test_other_buckets_are_refused(text):
    with pytest.raises(InvalidConfig, match="--random-mm-bucket-config is like"):
        read_buckets(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomOptions(input_len=0), "makes empty prompts"),
        (lambda: RandomOptions(random_output_len=0), "asks for empty answers"),
        (lambda: RandomOptions(random_range_ratio=1.0), "--random-range-ratio must be from 0 to below 1, got 1"),
        (lambda: media_options(base_items_per_request=-1), "--random-mm-base-items-per-request -1"),
        (lambda: media_options("{(8, 8, 1): 0}"), "no bucket above 0"),
        (lambda: media_options(limit_mm_per_prompt={"video": 1}), "does not say how many of: image"),
        (
            lambda: media_options(base_items_per_request=4, limit_mm_per_prompt={"image": 3}),
            "allows 3 media a request and .* asks for 4",
        ),
        (lambda: RandomOptions(num_prompts=0), "--num-prompts must be at least 1, got 0"),
        (lambda: DatasetChoice(dataset_name="custom"), "name it with --dataset-path"),
        (lambda: DatasetChoice(prefix_repetition_num_prefixes=0), "num-prefixes must be at least 1, got 0"),
        (lambda: DatasetSource(RandomOptions(), DatasetChoice()).requests(None), "leave out --skip-tokenizer-init"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidConfig, match=message):
        make()
