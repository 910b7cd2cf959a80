"""From a model's name to a folder, and a configuration's model with another tokenizer or token if one is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.weights.broken import refused
from tests.weights.hub_server import HubServer
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig, UnknownModel
from tilewise.weights.checkpoint import Checkpoint, find_model
from tilewise.weights.hubs.repository import HuggingFace, ModelScope


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


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path


def test_a_folder_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert find_model("~/models") == tmp_path / "models"


def test_a_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("owner/name") == Path("owner/name")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c", "", "a/b\n"])
def test_what_can_be_neither_a_folder_nor_an_id(name: str) -> None:
    refused(UnknownModel, lambda: find_model(name), name, "owner/name")


@pytest.mark.parametrize("name", ["owner/", "/name", "owner/na me", "owner/-name", "owner/name--x", "owner/..", "o/é"])
def test_an_id_that_no_hub_would_allow(name: str) -> None:
    refused(UnknownModel, lambda: find_model(name), name, "owner/name")


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a/../b", "..", "a b", "a//b"])
@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_a_revision_that_would_leave_the_cache(revision: str, where: str, hub: HubServer) -> None:
    refused(UnknownModel, lambda: find_model("tiny/model", revision, where), repr(revision), "tiny/model")
    assert not hub.seen


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "MODELSCOPE_ENDPOINT"])
def test_a_mirror_without_its_scheme(variable: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "mirror.example")
    where = "modelscope" if variable.startswith("MODEL") else "huggingface"
    refused(InvalidConfig, lambda: find_model("tiny/model", hub=where), variable, "mirror.example", "https://")


@pytest.mark.parametrize("value", ["True", "true", "1"])
def test_modelscope_is_chosen_by_the_environment(
    value: str, hub: HubServer, checkpoint: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("tiny/model", checkpoint)
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", value)
    assert find_model("tiny/model", weights=False).is_relative_to(tmp_path / "modelscope")
    assert find_model("tiny/model", hub="huggingface", weights=False).is_relative_to(tmp_path / "huggingface")
