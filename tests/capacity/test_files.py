"""Published checkpoints by their names: found without a network, and of the right size."""

from __future__ import annotations

import pytest

from tilewise.capacity.files import described, near_names, published, scheme_named
from tilewise.errors import InvalidConfig
from tilewise.weights.family import MEMBERS, RELATIVES
from tilewise.weights.quantization import layouts_of

EVERY = [name for member in MEMBERS.values() for name in (member.name, *(member.name + end for end in member.suffixes))]


@pytest.mark.parametrize("name", EVERY)
def test_every_member_is_known_by_its_id(name):
    found = published(f"OpenGVLab/{name}")
    assert found is not None
    assert name.startswith(found.member.name)
    assert not found.transformers


@pytest.mark.parametrize("member", MEMBERS.values(), ids=lambda member: member.name)
def test_and_by_that_of_the_format_of_transformers(member):
    if member.hf_name is None:
        assert published(f"OpenGVLab/{member.name}-hf") is None or member.generation == "2.5"
        return
    found = published(f"OpenGVLab/{member.hf_name}")
    assert found is not None
    assert found.transformers
    assert found.member is member


@pytest.mark.parametrize("name", RELATIVES)
def test_so_are_relatives(name):
    found = published(name)
    assert found is not None
    assert found.member is RELATIVES[name].like


@pytest.mark.parametrize(
    ("name", "member", "scheme", "method"),
    [
        ("OpenGVLab/InternVL3-78B-AWQ", "InternVL3-78B", "awq", "awq"),
        ("OpenGVLab/InternVL2_5-8B-MPO-AWQ", "InternVL2_5-8B", "awq", "awq"),
        ("vllm-ascend/InternVL3_5-38B-w8a8", "InternVL3_5-38B", "w8a8", "compressed-tensors"),
        ("/root/.cache/modelscope/hub/models/vllm-ascend/InternVL3_5-241B-A28B-w8a8/", "InternVL3_5-241B-A28B", "w8a8",
         "compressed-tensors"),
        ("someone/InternVL3_5-8B-Instruct-GPTQ-Int4", "InternVL3_5-8B", "gptq", "gptq"),
        ("brandonbeiler/InternVL3_5-8B-FP8-Dynamic", "InternVL3_5-8B", "fp8", "compressed-tensors"),
        ("InternVL3-8B_w4a16", "InternVL3-8B", "w4a16", "compressed-tensors"),
    ],
)  # fmt: skip
def test_how_they_are_quantised_is_in_the_name(name, member, scheme, method, tmp_path):
    found = published(name)
    assert found is not None
    assert (found.member.name, found.stored) == (member, scheme)
    folder = found.write(tmp_path)
    assert folder.quantization == method
    layouts = layouts_of(folder)
    assert layouts is not None
    assert layouts("language_model.model.layers.1.self_attn.q_proj") is not None
    floats = ("vision_model.encoder.layers.1.mlp.fc1", "mlp1.1", "language_model.lm_head", "language_model.output")
    assert [layouts(module) for module in floats] == [None] * 4


@pytest.mark.parametrize("name", ["OpenGVLab/InternVL4-8B", "Qwen/Qwen2.5-VL-7B", "InternVL", "AWQ", "", "/", "x/-AWQ"])
def test_what_is_not_of_the_family_is_not_known(name):
    assert published(name) is None


def test_a_slip_is_answered_with_the_nearest():
    assert near_names("OpenGVLab/InternVL3-8") == " Did you mean InternVL3-8B?"
    with pytest.raises(InvalidConfig, match=r"--quantization w4a8: .* Did you mean w8a8\?"):
        scheme_named("w4a8")


def test_groups_divide_the_inputs_of_every_layer():
    config = {"llm_config": {"num_attention_heads": 4, "hidden_size": 320, "intermediate_size": 960}}
    group = described(config, "w4a16")["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["group_size"] == 64
    config["llm_config"]["intermediate_size"] = 970
    group = described(config, "w4a16")["quantization_config"]["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel"
