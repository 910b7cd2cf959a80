"""A configuration's model, with another tokenizer or token where one is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewise.config import EngineConfig
from tilewise.errors import UnknownModel
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.hubs.huggingface import HuggingFace
from tilewise.weights.hubs.modelscope import ModelScope


def test_the_tokenizer_is_the_models_own_unless_another_is_named(tmp_path: Path) -> None:
    own = Checkpoint.of(EngineConfig())
    assert own.tokenizer == own.folder.path
    other = Checkpoint.of(EngineConfig(tokenizer=str(tmp_path)))
    assert (other.tokenizer, other.folder.path) == (tmp_path, own.folder.path)


def test_a_tokenizer_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModel, match="no-such-tokenizer: no such folder"):
        Checkpoint.of(EngineConfig(tokenizer="no-such-tokenizer"))


def test_a_token_is_shown_to_the_hub_and_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-the-environment")
    asked = HuggingFace.of("owner/name", None, None, "hf_secret")
    assert asked.headers() == {"Authorization": "Bearer hf_secret"}
    assert HuggingFace.of("owner/name", None, None).headers() == {"Authorization": "Bearer of-the-environment"}
    assert ModelScope.of("owner/name", None, None, "hf_secret").headers()["Authorization"] == "Bearer hf_secret"
    for shown in (asked, EngineConfig(hf_token="hf_secret")):
        assert "hf_secret" not in repr(shown)
