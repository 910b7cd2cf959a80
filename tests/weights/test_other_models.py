"""Models that look like one of the family and compute something else are named, with what comes nearest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import SPECS, original_config, tokenizer, write_original
from tests.weights.broken import change_config, refused
from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.models.load import Architecture
from tilewise.weights.folder import CheckpointFolder, format_name

OTHERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "InternVideo2.5": (
        {"auto_map": {"AutoModel": "modeling_internvl_chat_hico2.InternVLChatModel"}},
        "HiCo",
        "InternVL2_5-8B",
    ),
    "Mono-InternVL": ({"llm_config": {"architectures": ["InternLM2VEForCausalLM"]}}, "experts", "InternVL2_5-2B"),
    "Intern-S1-Pro": ({"architectures": ["InternS1ProForConditionalGeneration"]}, "groups of experts", "Intern-S1"),
    "Intern-S2-Preview": ({"architectures": ["InternS2PreviewForConditionalGeneration"]}, "Qwen3.5", "Intern-S1-mini"),
    "InternVL-U": ({"architectures": ["InternVLUChatModel"]}, "draws pictures", "InternVL3_5-2B"),
    "SenseNova-U1": ({"architectures": ["NEOChatModel"]}, "no vision encoder", "SenseNova-SI"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_computed_is_refused_by_name_before_anything_else(name: str, tmp_path: Path) -> None:
    change, why, nearest = OTHERS[name]
    write_original(tmp_path, SPECS["qwen2-300m"])
    # Whatever else is unknown of it: its name is what a user can do something with.
    change_config(tmp_path, template="unknown", **change)
    folder, tiny = CheckpointFolder.open(tmp_path), Tokenizer(tokenizer().to_str())
    message = refused(InvalidCheckpoint, lambda: Architecture.of(folder), name, why, nearest, "config.json")
    assert refused(InvalidCheckpoint, lambda: InputSpec.of(folder, tiny)) == message


@pytest.mark.parametrize("change", [{"auto_map": None}, {"auto_map": ["hico"]}, {"llm_config": {"architectures": [1]}}])
def test_what_config_json_says_otherwise_than_others_is_no_such_model(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(original_config(SPECS["qwen2-300m"])))
    change_config(tmp_path, **change)
    assert format_name(CheckpointFolder.open(tmp_path)) == "original"


def test_experts_in_groups_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(original_config(SPECS["qwen3moe-300m-head"])))
    change_config(tmp_path, llm_config={"router_n_groups": 8})
    refused(InvalidCheckpoint, lambda: Architecture.of(CheckpointFolder.open(tmp_path)), "router_n_groups=8")
