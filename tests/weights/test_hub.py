"""From a model's name to a folder, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.weights.broken import refused
from tilewise.errors import UnknownModel
from tilewise.weights.hub import find_model


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("VLLM_USE_MODELSCOPE", raising=False)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path


def test_a_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("owner/name") == Path("owner/name")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c"])
def test_what_can_be_neither_a_folder_nor_an_id(name: str) -> None:
    refused(UnknownModel, lambda: find_model(name), name, "owner/name")


def test_an_id_that_is_not_here_offline(tmp_path: Path) -> None:
    message = refused(UnknownModel, lambda: find_model("OpenGVLab/InternVL3-1B", cache=str(tmp_path)), "InternVL3-1B")
    assert "local folder" in message


@pytest.mark.parametrize("name", ["owner/", "/name", "owner/na me", "owner/-name", "owner/name--x", "owner/..", "o/é"])
def test_an_id_that_the_hub_would_not_allow(name: str, tmp_path: Path) -> None:
    refused(UnknownModel, lambda: find_model(name, cache=str(tmp_path)), name)


def test_modelscope_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    refused(UnknownModel, lambda: find_model("OpenGVLab/InternVL3-1B", hub="modelscope"), "tilewise[modelscope]")


def test_modelscope_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    refused(UnknownModel, lambda: find_model("OpenGVLab/InternVL3-1B"), "ModelScope")
