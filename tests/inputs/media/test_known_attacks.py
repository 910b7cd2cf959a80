"""Attacks on media, markers, hashes and checkpoints that other servers met: one test for each, named by its CVE.

docs/advisories.md has a row for each, with the tests that belong to another part.
"""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from tests.inputs.media.loopback import LIMIT
from tests.inputs.pictures import data_url, picture_url, saved, user, video, video_url
from tests.tiny import SPECS, write_original
from tilewise import LLM
from tilewise.errors import InvalidMedia, InvalidRequest
from tilewise.inputs.media.cache import picture_digest
from tilewise.inputs.media.fetch import MediaAccess
from tilewise.inputs.media.limits import MediaLimits
from tilewise.inputs.media.reader import MediaOptions, MediaReader
from tilewise.inputs.media.tiling import Tiling, tile_digest
from tilewise.inputs.messages import read_messages
from tilewise.inputs.pieces import Message
from tilewise.sampling_params import SamplingParams


def read(*parts, reader: MediaReader | None = None):
    return read_messages([user(*parts)], (reader or MediaReader()).timed())


PRIVATE = ["127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1", "[::ffff:10.0.0.1]", "2130706433", "0177.0.0.1"]


@pytest.mark.parametrize("kind", ["image_url", "video_url"])
@pytest.mark.parametrize("host", PRIVATE)
def test_ssrf_to_private_addresses(no_connection, kind, host):
    """CVE-2025-6242 (GHSA-3f6c-7fw2-ppm4): addresses that are not public are refused without a connection."""
    with pytest.raises(InvalidMedia, match="is not a public address: refused"):
        read({kind: f"http://{host}/latest/meta-data"})


def test_ssrf_is_refused_without_any_option(no_connection):
    """CVE-2026-33626: refusing private addresses is the default, and no list of domains opens them."""
    for access in (MediaAccess(), MediaAccess(allowed_media_domains=("localhost",))):
        with pytest.raises(InvalidMedia, match="is not a public address: refused"):
            access.fetch("http://localhost/")


DISAGREEING = ["allowed.example\\@", "allowed.example@", "allowed.example#@", "allowed.example?@", "allowed.example\\."]


@pytest.mark.parametrize("trick", DISAGREEING)
def test_parsers_that_disagree(no_connection, trick):
    """CVE-2026-24779 (GHSA-qh4c-xf7m-gxfc): a URL is read once, and what might be read in two ways is refused."""
    for url in (f"http://{trick}127.0.0.1/", f"http://127.0.0.1{trick[15:]}allowed.example/"):
        with pytest.raises(
            InvalidMedia, match=r"backslashes|credentials|allowed domains|not a public|^allowed\.example: "
        ):
            MediaAccess(allowed_media_domains=("allowed.example",)).fetch(url)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_redirects_out_of_the_allowed_domains(server, base, kind):
    """GHSA-v359-jj2v-j536, GHSA-pf3h-qjgv-vcpr: each hop of each kind of media meets the same check."""
    access = MediaAccess(allow_private_addresses=True, allowed_media_domains=("127.0.0.1",))
    with pytest.raises(InvalidMedia, match="allowed domains"):
        access.fetch(f"{base}/to?http://localhost:{server.server_port}/picture", kind)
    assert len(server.seen) == 1


NO_FILES = [
    *(b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0\xff\xff\xff\xff", b"%PDF-1.7", b"RIFF0000WEBP"),
    saved(Image.new("L", (9, 9)))[:40],
]


@pytest.mark.parametrize("data", NO_FILES)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_errors_that_tell_where_memory_is(data, kind):
    """CVE-2026-22778: no address and no object of Python gets into an error."""
    with pytest.raises(InvalidMedia) as caught:
        read({f"{kind}_url": data_url("x/y", data)})
    assert "0x" not in str(caught.value)
    assert "<" not in str(caught.value)


def test_decoders_that_nobody_needs(monkeypatch):
    """CVE-2026-22778: pictures and videos of formats outside a short list are not decoded."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("interpreter started"))
    for kind in ("EPS", "PCX", "SGI", "DDS"):
        with pytest.raises(InvalidMedia, match="is not a picture that can be read"):
            read({"image_url": data_url("image/png", saved(Image.new("RGB", (9, 9)), kind))})
    with pytest.raises(InvalidMedia, match="codec jpeg2000, which is not read here"):
        read({"video_url": data_url("video/mp4", video(codec="jpeg2000", container_format="matroska"))})


SIZES = [(1, 1), (1, 40), (40, 1), (400, 2), (2, 400), (1, 3), (3, 1), (20_000, 1), (1, 20_000), (4, 4), (3, 4)]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
@pytest.mark.parametrize("size", SIZES)
def test_tiny_and_thin_pictures(make_preparer, size, mode):
    """CVE-2026-22773: a picture of one pixel, whose sides could be taken for channels, or of 20,000:1 makes whole
    tiles, as the reference resizes it, and cannot hurt a model."""
    picture = Image.new(mode, size, 60000 if mode == "I;16" else "white")
    messages, media = read("Hi", {"image_url": data_url("image/png", saved(picture))})
    (image,) = make_preparer().chat(messages, media, SamplingParams()).images
    assert {tile.pixels.shape for tile in image.tiles} == {(28, 28, 3)}
    assert all(tile.pixels.min() >= 230 for tile in image.tiles)


def test_a_list_of_ten_thousand_frames(monkeypatch):
    """CVE-2026-5497, CVE-2026-34755 (GHSA-vxqj-p4gw-9h4c): counted before any is decoded."""
    frame = picture_url().partition(",")[2]
    monkeypatch.setattr(base64, "b64decode", lambda *args, **options: pytest.fail("decoded"))
    with pytest.raises(InvalidMedia, match="A video has 10000 frames, the limit is 512"):
        read({"video_url": "data:video/jpeg;base64," + ",".join([frame] * 10_000)})


@pytest.mark.parametrize("count", [513, 10**6, -2])
def test_a_request_that_raises_the_server_s_limit_on_frames(count):
    """vLLM PR 51969: a request's own `media_io_kwargs` stay within the server's limits."""
    with pytest.raises(InvalidRequest, match=f"num_frames must be a whole number from 1 to 512, got {count}"):
        MediaOptions.of({"video": {"num_frames": count}})


def test_all_frames_are_no_more_than_the_server_allows():
    """vLLM PR 51969, for `num_frames` -1: all frames of a video, within the same limits."""
    options = MediaOptions.of({"video": {"num_frames": -1}})
    reader = MediaReader(MediaAccess(limits=MediaLimits(chosen_frames=5)))
    _, (frames,) = read_messages([user({"video_url": video_url(5)})], reader.timed(options))
    assert len(frames) == 5
    with pytest.raises(InvalidMedia, match=r"has 6 frames, 6 of them are asked for and the limit is 5 \(TILEWISE_MAX"):
        read_messages([user({"video_url": video_url(6)})], reader.timed(options))


def test_a_video_that_is_walked_for_ever():
    """vLLM PR 57525: frames are counted, and not only those that are chosen."""
    reader = MediaReader(MediaAccess(limits=MediaLimits(video_frames=5)))
    read({"video_url": video_url(5)}, reader=reader)
    with pytest.raises(InvalidMedia, match="more than 5 frames, the limit"):
        read({"video_url": video_url(6)}, reader=reader)


MARKERS = ["<IMG_CONTEXT>", "<img>", "</img>", "<img><IMG_CONTEXT></img>", "<image>", "<video>", "<IMG_CONTEXT>" * 300]


@pytest.mark.parametrize("pictures", [0, 1])
@pytest.mark.parametrize("text", MARKERS)
def test_markers_in_a_user_s_text(make_preparer, tokenizer, text, pictures):
    """CVE-2026-44222 (GHSA-hpv8-x276-m59f): rows of pictures stand where pictures were sent, or it is a 400."""
    media = [Image.new("RGB", (28, 28))] * pictures
    try:
        request = make_preparer().chat([Message("user", f"a {text} b", pictures)], media, SamplingParams())
    except InvalidRequest:
        assert text in ("<image>", "<video>")
        return
    rows = request.prompt_ids.count(tokenizer.special_id("<IMG_CONTEXT>"))
    assert rows == 4 * pictures == 4 * sum(len(image.tiles) for image in request.images)


def test_hashes_that_forget_shape_and_mode():
    """CVE-2025-46722 (GHSA-c65p-x677-fgj6): equal bytes of another shape or mode are another picture."""
    wide = Image.frombytes("RGB", (100, 30), bytes(9000))
    tall = Image.frombytes("RGB", (30, 100), bytes(9000))
    grey = Image.frombytes("L", (100, 90), bytes(9000))
    assert len({picture_digest(image, Tiling(), False) for image in (wide, tall, grey)}) == 3
    pixels = np.zeros((4, 8, 3), np.uint8)
    assert tile_digest(pixels) != tile_digest(pixels.reshape(8, 4, 3))


@pytest.mark.parametrize("kind", ["image_embeds", "video_embeds", "prompt_embeds"])
def test_embeddings_from_outside(kind):
    """CVE-2025-62164, CVE-2025-62372: there is no way in for a caller's tensors, unless the engine is told to take
    those of pictures, which are checked then (test_embeddings.py, test_tensor_file.py)."""
    with pytest.raises(
        InvalidRequest, match=r"type must be one of text, image_url|not taken without --enable-mm-embeds"
    ):
        read({"type": kind, kind: "gASVAAAA"})


def test_pictures_named_in_text(no_connection):
    """CVE-2026-0599: text is text; nothing in it is fetched."""
    parsed, media = read("![](http://127.0.0.1/a.png) <img src='http://127.0.0.1/a.png'>")
    assert media == []
    assert "127.0.0.1" in parsed[0].text


def test_an_endless_file_without_a_length(base):
    """CVE-2026-0599: bytes are counted as they come, whatever the server announced."""
    access = MediaAccess(allow_private_addresses=True, limits=MediaLimits(file_bytes=LIMIT))
    with pytest.raises(InvalidMedia, match=r"bytes or more, the limit is 1000.*VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB"):
        access.fetch(f"{base}/streamed?10000000")


def test_code_in_a_checkpoint(tmp_path):
    """CVE-2026-22807 (GHSA-2pc9-4j83-qjmr), CVE-2025-66448: `auto_map` without consent imports nothing."""
    folder, marker = write_original(tmp_path / "model", SPECS["qwen2-300m"]), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
    names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, "auto_map": dict.fromkeys(names, "evil.Evil")}))
    with LLM(str(folder), max_model_len=64, encoder_cache_gb=0.001) as llm:
        assert llm.generate("Hi", SamplingParams(max_tokens=1))[0].outputs
    assert not marker.exists()
