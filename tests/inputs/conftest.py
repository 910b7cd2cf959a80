"""The small tokenizer, and preparers around it."""

import pytest

from tests.inputs.media.loopback import base, no_connection, running, server  # noqa: F401
from tests.inputs.vocabulary import CONTROL, NOT_SPECIAL, small_tokenizer
from tilewise.config import EngineConfig
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import TEMPLATES


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    """Whatever the machine that runs the tests is behind."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="session")
def control_ids(tokenizer):
    return {tokenizer.special_id(token) for token in (*CONTROL, *NOT_SPECIAL)}


@pytest.fixture(scope="session")
def make_preparer(tokenizer):
    """A preparer for tiles of 28 pixels and 4 tokens, unless told otherwise."""

    def make(max_model_len=4096, config=None, **tiling):
        tiles = Tiling(**{"tile_size": 28, **tiling})
        end_ids = frozenset({tokenizer.special_id("<|im_end|>")})
        spec = InputSpec(TEMPLATES["internvl2_5"], tiles, 4, end_ids)
        return Preparer(spec, tokenizer, max_model_len, config or EngineConfig())

    return make
