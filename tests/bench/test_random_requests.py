"""Random requests: lengths, seeds, what they share, and their media."""

from __future__ import annotations

import base64
import io
from collections import Counter

import av
import numpy as np
import pytest
from PIL import Image

from tilewise.bench.client import Target
from tilewise.bench.datasets import DatasetSource
from tilewise.bench.random_requests import Bucket, Lengths, MediaShape, RandomText, Repetition, read_buckets, with_media
from tilewise.bench.requests import CHAT, SampleRequest
from tilewise.bench.tokenizer import BenchTokenizer, LocalTokenizer, ServerTokenizer, find_tokenizer
from tilewise.errors import InvalidConfig
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.weights.checkpoint import find_model


@pytest.fixture(scope="module")
def tokenizer() -> BenchTokenizer:
    return LocalTokenizer(Tokenizer.from_folder(find_model("demo")))


def text_of(tokenizer: BenchTokenizer, seed: int = 0, count: int = 40, **lengths) -> list[SampleRequest]:
    return list(RandomText(tokenizer, seed).requests(count, Lengths(**lengths)))


@pytest.mark.parametrize("seed", range(3))
def test_prompts_have_exactly_the_tokens_that_were_asked_for(tokenizer, seed):
    found = text_of(tokenizer, seed, input=200, output=32)
    assert {len(tokenizer.encode(request.prompt)) for request in found} == {200}
    assert {(request.prompt_tokens, request.output_tokens) for request in found} == {(200, 32)}
    assert len({request.prompt[:20] for request in found}) == 40, "no two begin alike"


def test_lengths_are_drawn_from_the_whole_range(tokenizer):
    found = text_of(tokenizer, count=300, input=10, output=4, spread=0.5)
    assert set(Counter(request.prompt_tokens for request in found)) == set(range(5, 16))
    assert {request.output_tokens for request in found} == {2, 3, 4, 5, 6}


def test_a_prefix_is_shared(tokenizer):
    first, second = (
        tokenizer.encode(request.prompt) for request in text_of(tokenizer, count=2, input=20, output=1, prefix=30)
    )
    assert len(first) == 50
    assert first[:25] == second[:25]
    assert first[30:] != second[30:]


def test_a_seed_makes_the_same_requests_and_another_one_others(tokenizer):
    source = DatasetSource(
        "random-mm", count=3, seed=5, lengths=Lengths(20, 4), media=MediaShape(buckets=(Bucket(32, 48, 1, 1.0),))
    )
    assert source.requests(tokenizer) == source.requests(tokenizer)
    other = DatasetSource("random-mm", count=3, seed=6, lengths=source.lengths, media=source.media).requests(tokenizer)
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
    found = list(RandomText(theirs, 0).requests(2, Lengths(30, 4)))
    assert [len(tokenizer.encode(request.prompt)) for request in found] == [30, 30]


def test_a_server_that_does_not_tokenize_is_named(demo_url):
    target = Target(f"{demo_url}/none", CHAT.endpoint, CHAT)
    with (
        find_tokenizer(None, "no-folder", "m", target) as found,
        pytest.raises(InvalidConfig, match=r"no tokenizer for m: .*HTTP 404.*--tokenizer FOLDER, or do without"),
    ):
        found.encode("a")


def test_repeated_prefixes(tokenizer):
    source = DatasetSource(
        "prefix_repetition", count=9, repetition=Repetition(prefix=40, suffix=10, prefixes=3, output=5)
    )
    found = source.requests(tokenizer)
    beginnings = Counter(tuple(tokenizer.encode(request.prompt)[:35]) for request in found)
    assert sorted(beginnings.values()) == [3, 3, 3]
    assert {request.prompt_tokens for request in found} == {50}
    assert len({request.prompt for request in found}) == 9
    with pytest.raises(InvalidConfig, match="--num-prompts 2 is below --prefix-repetition-num-prefixes 3"):
        DatasetSource("prefix_repetition", count=2, repetition=source.repetition).requests(tokenizer)


def media_of(shape: MediaShape, count: int = 200) -> list[SampleRequest]:
    return list(with_media([SampleRequest("", 0, 1)] * count, shape, np.random.default_rng(0)))


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_pictures_come_in_their_sizes_by_weight():
    buckets = (Bucket(16, 32, 1, 3.0), Bucket(24, 16, 1, 1.0), Bucket(8, 8, 1, 0.0))
    sizes = Counter(opened(request.media[0].url).size for request in media_of(MediaShape(buckets=buckets)))
    assert set(sizes) == {(32, 16), (16, 24)}
    assert sizes[32, 16] / 200 == pytest.approx(0.75, abs=0.1)


def test_no_two_pictures_are_alike():
    found = media_of(MediaShape(items=2, buckets=(Bucket(16, 16, 1, 1.0),)), count=20)
    assert len({item.url for request in found for item in request.media}) == 40


def test_the_number_of_media_is_drawn_and_limited():
    shape = MediaShape(items=2, spread=0.5, buckets=(Bucket(8, 8, 1, 1.0),))
    assert {len(request.media) for request in media_of(shape)} == {1, 2, 3}
    one = MediaShape(items=2, spread=0.5, limits={"image": 2}, buckets=(Bucket(8, 8, 1, 1.0),))
    assert {len(request.media) for request in media_of(one)} == {1, 2}


def test_a_kind_that_has_reached_its_limit_is_drawn_no_more():
    shape = MediaShape(items=3, limits={"image": 5, "video": 1}, buckets=(Bucket(8, 8, 1, 0.1), Bucket(16, 16, 2, 0.9)))
    for request in media_of(shape, 20):
        assert Counter(item.kind for item in request.media)["video"] <= 1
        assert len(request.media) == 3


def test_a_video_has_its_frames():
    (request,) = media_of(MediaShape(buckets=(Bucket(16, 32, 5, 1.0),)), 1)
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
        (lambda: Lengths(0, 1), "makes empty prompts"),
        (lambda: Lengths(4, 0), "asks for empty answers"),
        (lambda: Lengths(4, 4, spread=1.0), "--random-range-ratio must be from 0 to below 1, got 1"),
        (lambda: MediaShape(items=-1), "--random-mm-base-items-per-request -1"),
        (lambda: MediaShape(buckets=(Bucket(8, 8, 1, 0.0),)), "no bucket above 0"),
        (lambda: MediaShape(limits={"video": 1}), "does not say how many of: image"),
        (lambda: MediaShape(items=4, limits={"image": 3}), "allows 3 media a request and .* asks for 4"),
        (lambda: DatasetSource(count=0), "--num-prompts must be at least 1, got 0"),
        (lambda: DatasetSource("custom"), "name it with --dataset-path"),
        (lambda: DatasetSource("random").requests(None), "leave out --skip-tokenizer-init"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(InvalidConfig, match=message):
        make()
