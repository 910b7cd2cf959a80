"""config.json that is absent, damaged, or says something no model can be: typed errors, each naming file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.driving import all_logits, prompt_of, random_tiles
from tests.tiny import SPECS, hf_config, original_config, reference_model, tokenizer, write_hf, write_original
from tests.weights.broken import change_config, load, refused
from tilewise import LLM
from tilewise.errors import InvalidCheckpoint, UnknownModel
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.models.load import Architecture
from tilewise.weights.folder import CheckpointFolder, Section

SPEC = SPECS["qwen2-300m"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An original config alone; nothing here gets as far as weights."""
    (tmp_path / "config.json").write_text(json.dumps(original_config(SPEC)))
    return tmp_path


def architecture(folder: Path) -> Architecture:
    return Architecture.of(CheckpointFolder.open(folder))


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    refused(UnknownModel, lambda: architecture(tmp_path / "nowhere"), "nowhere")


def test_config_absent(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(InvalidCheckpoint, lambda: architecture(folder), str(folder), "config.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"not json", b"[" * 100_000], ids=lambda c: repr(c[:9]))
def test_config_that_is_not_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(InvalidCheckpoint, lambda: architecture(folder), str(folder / "config.json"), "cannot be read")


@pytest.mark.parametrize(("content", "found"), [("[]", "list"), ("3", "int"), ("null", "NoneType")])
def test_config_that_is_no_object(folder: Path, content: str, found: str) -> None:
    (folder / "config.json").write_text(content)
    refused(InvalidCheckpoint, lambda: architecture(folder), "config.json", "object", found)


def test_unknown_architecture_with_a_near_match(folder: Path) -> None:
    change_config(folder, architectures=["InternVLChat"])
    message = refused(InvalidCheckpoint, lambda: architecture(folder), "config.json", "'InternVLChat'")
    assert message.endswith("Did you mean InternVLChatModel?")


def test_unknown_architecture_far_from_any(folder: Path) -> None:
    change_config(folder, architectures=["LlavaForConditionalGeneration"])
    refused(InvalidCheckpoint, lambda: architecture(folder), "LlavaForConditionalGeneration", "InternVLChatModel")


def test_unknown_language_model(folder: Path) -> None:
    change_config(folder, llm_config={"architectures": ["MambaForCausalLM"]})
    refused(InvalidCheckpoint, lambda: architecture(folder), "llm_config", "MambaForCausalLM", "Qwen2ForCausalLM")


def test_unknown_language_model_with_a_near_match(folder: Path) -> None:
    change_config(folder, llm_config={"architectures": ["Qwen2_ForCausalLM"]})
    refused(InvalidCheckpoint, lambda: architecture(folder), "Did you mean Qwen2ForCausalLM?")


def test_unknown_language_model_by_model_type(tmp_path: Path) -> None:
    config = hf_config(SPEC)
    config["text_config"] |= {"architectures": None, "model_type": "mamba"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(InvalidCheckpoint, lambda: architecture(tmp_path), "text_config", "mamba")


def test_model_type_alone_is_enough(tmp_path: Path) -> None:
    config = hf_config(SPEC)
    del config["text_config"]["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert architecture(tmp_path).backbone.architecture == "Qwen2ForCausalLM"


def test_unknown_template_with_a_near_match(folder: Path) -> None:
    change_config(folder, template="internvl2-5")
    tiny = Tokenizer(tokenizer().to_str())
    message = refused(InvalidCheckpoint, lambda: InputSpec.of(CheckpointFolder.open(folder), tiny), "config.json")
    assert "'internvl2-5'" in message
    assert message.endswith("Did you mean internvl2_5?")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"select_layer": -4}, ("select_layer", "-4", "-1")),
        ({"ps_version": "v3"}, ("ps_version", "'v3'", "v1", "v2")),
        ({"torch_dtype": "int8"}, ("torch_dtype", "'int8'", "bfloat16")),
        ({"downsample_ratio": 0.3}, ("downsample_ratio", "0.3")),
        ({"force_image_size": 60}, ("60", "14")),
        ({"force_image_size": 42}, ("42", "2x2")),
        ({"vision_config": {"norm_type": "batch_norm"}}, ("vision_config", "norm_type", "batch_norm", "rms_norm")),
        ({"vision_config": {"hidden_act": "relu"}}, ("vision_config", "hidden_act", "relu", "gelu")),
        ({"vision_config": {"num_attention_heads": 5}}, ("vision_config", "num_attention_heads", "5", "24")),
        ({"vision_config": {"hidden_size": None}}, ("vision_config", "hidden_size", "None")),
        ({"llm_config": {"hidden_act": "gelu"}}, ("llm_config", "hidden_act", "gelu", "silu")),
        ({"llm_config": {"num_key_value_heads": 4}}, ("num_attention_heads=6", "num_key_value_heads=4")),
        ({"llm_config": {"head_dim": 7}}, ("llm_config", "head_dim", "7")),
        ({"llm_config": {"use_sliding_window": True}}, ("llm_config", "use_sliding_window")),
        (
            {"llm_config": {"rope_scaling": {"type": "linear", "factor": 4}}},
            ("llm_config", "'linear'", "'default'", "'dynamic'", "'longrope'", "'yarn'"),
        ),
        ({"llm_config": {"vocab_size": "many"}}, ("llm_config", "vocab_size", "'many'")),
        ({"llm_config": {"num_hidden_layers": 0}}, ("llm_config", "num_hidden_layers", "0")),
        ({"llm_config": {"rms_norm_eps": None}}, ("llm_config", "rms_norm_eps", "None")),
    ],
    ids=str,
)
def test_what_no_model_can_be(folder: Path, change: dict[str, Any], names: tuple[str, ...]) -> None:
    change_config(folder, **change)
    refused(InvalidCheckpoint, lambda: architecture(folder).dtype, "config.json", *names)


WRONG: tuple[Any, ...] = (None, "x", "", -1, 0, 1.5, True, [], ["x"], {}, {"x": 1}, [2, 3], 10**400)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("section", ["", "llm_config", "vision_config"])
def test_no_value_of_any_key_raises_anything_else(folder: Path, section: str, value: object) -> None:
    """Whatever stands in a config, it is understood or refused as a checkpoint's fault."""
    config = original_config(SPEC)
    keys = config[section] if section else config
    surprises = []
    for key in list(keys):
        changed = {**config, section: {**keys, key: value}} if section else {**config, key: value}
        (folder / "config.json").write_text(json.dumps(changed))
        try:
            assert architecture(folder).dtype.is_floating_point
        except InvalidCheckpoint:
            continue
        except Exception as error:
            surprises.append(f"{section} {key}={value!r:.20}: {error!r}")
    assert surprises == []


def test_scaling_of_rope_by_a_wrong_value(folder: Path) -> None:
    for factor in ("x", [], {}):
        change_config(folder, llm_config={"rope_scaling": {"type": "dynamic", "factor": factor}})
        if factor:
            refused(InvalidCheckpoint, lambda: architecture(folder), "factor")


def test_code_of_the_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = write_original(tmp_path / "model", SPEC)
    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass InternVLChatModel: ...\n"
    for name in ("modeling_internvl_chat.py", "configuration_internvl_chat.py", "tokenization.py", "__init__.py"):
        (folder / name).write_text(code)
    change_config(
        folder,
        auto_map={
            "AutoConfig": "configuration_internvl_chat.InternVLChatModel",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
    )
    with LLM(str(folder), trust_remote_code=True, max_model_len=64, encoder_cache_gb=0.001) as llm:
        assert llm.get_tokenizer().vocab_size > 256
    assert not marker.exists()


@pytest.mark.parametrize("name", SPECS)
def test_what_transformers_saves_is_read_back(name: str, tmp_path: Path) -> None:
    """transformers writes configs its own way, and leaves out what equals a default."""
    spec = SPECS[name]
    ours = load(write_hf(tmp_path / "ours", spec))
    reference_model(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    ids, pixels = prompt_of(spec, (1,)), random_tiles(spec, 1)
    assert all_logits(load(tmp_path / "theirs"), ids, pixels).equal(all_logits(ours, ids, pixels))


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "hqq"),
        ({"llm_config": {"quantization_config": {"quant_method": "exl2", "bits": 4}}}, "exl2"),
    ],
    ids=["top", "in the language model"],
)
def test_a_quantised_checkpoint_is_named_by_its_config(folder: Path, change: dict[str, Any], method: str) -> None:
    change_config(folder, **change)
    refused(InvalidCheckpoint, lambda: architecture(folder), str(folder), f"quantised by {method},", "bfloat16")


def test_null_is_what_nobody_has_set() -> None:
    """transformers writes each value that is None as null, and reads null as it reads what is not there."""
    section = Section({"head_dim": None, "vocab_size": 0}, "config.json")
    assert [section.get("head_dim", 128), section.get("absent", 128), section.get("vocab_size", 128)] == [128, 128, 0]


@pytest.mark.parametrize("value", [[[14], [14]], [{}], [14, 16], []], ids=str)
def test_a_list_that_is_no_whole_number_is_refused(value: object) -> None:
    section = Section({"patch_size": value}, "config.json")
    refused(InvalidCheckpoint, lambda: section.whole("patch_size"), "patch_size must be a whole number above 0")
    assert Section({"patch_size": [14, 14]}, "config.json").whole("patch_size") == 14
