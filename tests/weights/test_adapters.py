"""Low-rank adapters: weights beside those that PEFT merges, checkpoints saved while wrapped, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests.tiny import SPECS, write_hf, write_original
from tests.weights.broken import change_config, change_tensors, refused
from tests.weights.hub_server import HubServer
from tilewise import LLM, SamplingParams
from tilewise.config import EngineConfig
from tilewise.errors import InvalidCheckpoint, InvalidConfig, UnknownModel
from tilewise.models.load import Architecture
from tilewise.platforms.ops import TorchOps
from tilewise.quantize import QuantizeOptions
from tilewise.quantize.run import quantize
from tilewise.weights.adapter import Adapter
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.folder import CheckpointFolder

# PEFT asks transformers for something under its old name, and says that it saves an embedding whole.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning"),
]
SPEC = SPECS["qwen2-300m"]
LANGUAGE = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "all layers": {"target_modules": "all-linear"},
    "by the root of the rank": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 40, "v_proj": 3},
    },
    "magnitudes": {"use_dora": True},
    "embedding": {"target_modules": [*LANGUAGE, "embed_tokens"]},
    "whole layers beside": {"modules_to_save": ["linear_1", "lm_head"]},
    "biases beside": {"bias": "lora_only"},
}


def write_adapter(base: Path, out: Path, **changed: Any) -> tuple[Path, Path]:
    """Train nothing, but draw an adapter: its folder, and that of the model into which PEFT merged it."""
    import peft  # seconds, which collection need not take

    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    asked = {"r": 4, "lora_alpha": 12, "target_modules": LANGUAGE} | changed
    adapted = peft.get_peft_model(model, peft.LoraConfig(**asked))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.abs() if "magnitude" in name else 0.2 * noise)
    adapted.save_pretrained(out / "adapter")
    merged = out / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    for path in base.iterdir():
        if not (merged / path.name).exists() and path.suffix != ".safetensors":
            shutil.copy(path, merged)
    return out / "adapter", merged


def weights(folder: Path, adapter: Path | None = None) -> dict[str, Tensor]:
    """All tensors that the modules get, by internal names."""
    found = dict[str, Tensor]()
    opened = CheckpointFolder.open(folder)
    if adapter is not None:
        opened = replace(opened, adapter=Adapter.open(adapter))

    def keep(name: str, tensor: Tensor) -> None:
        found[name] = tensor.clone()

    Architecture.of(opened).load(torch.float32, TorchOps(), 64, watch=keep)
    return found


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5, msg=name)


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("adapters") / "hf", SPEC)


@pytest.fixture(scope="module")
def usual(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_adapter(hf, tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_peft_merges(hf: Path, tmp_path: Path, kind: str) -> None:
    adapter, merged = write_adapter(hf, tmp_path, **KINDS[kind])
    ours = weights(hf, adapter)
    same(ours, weights(merged))
    assert len(differing(ours, weights(hf))) >= 3 * SPEC.layers


@pytest.mark.parametrize("spelling", ["old", "new"])
def test_an_adapter_fits_either_spelling_of_names(tmp_path: Path, usual: tuple[Path, Path], spelling: Any) -> None:
    base = write_hf(tmp_path / "base", SPEC, spelling=spelling)
    same(weights(base, usual[0]), weights(usual[1]))


def wrap(folder: Path, modules: Callable[[str], bool], rank: int = 4) -> dict[str, Tensor]:
    """Save a checkpoint as OpenGVLab's training does; return the weights that are meant, by their plain names."""
    generator, meant = torch.Generator().manual_seed(3), dict[str, Tensor]()

    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            part, _, rest = name.partition(".")
            if part not in ("language_model", "vision_model"):
                continue
            tensor, inside = tensors.pop(name), f"{part}.base_model.model.{rest}"
            module = inside.removesuffix(".weight")
            if name.endswith(".weight") and modules(name.removesuffix(".weight")):
                down = torch.randn(rank, tensor.shape[1], generator=generator)
                up = 0.2 * torch.randn(tensor.shape[0], rank, generator=generator)
                tensors |= {f"{module}.lora_A.default.weight": down, f"{module}.lora_B.default.weight": up}
                meant[name] = tensor + 2 * up @ down
                inside = f"{module}.base_layer.weight"
            elif name.endswith(".bias") and modules(name.removesuffix(".bias")):
                inside = inside.replace(".bias", ".base_layer.bias")
            tensors[inside] = tensor

    change_tensors(folder, change)
    change_config(folder, use_llm_lora=rank, use_backbone_lora=rank)
    return meant


def adapted(module: str) -> bool:
    return module.endswith((".attn.qkv", ".mlp.fc1", ".q_proj", ".down_proj"))


def test_a_checkpoint_that_was_saved_while_wrapped(tmp_path: Path) -> None:
    """Fused layers of the tower among them, from which parts are read."""
    wrapped, plain = write_original(tmp_path / "wrapped", SPEC), write_original(tmp_path / "plain", SPEC)
    meant = wrap(wrapped, adapted)
    before = weights(plain)
    change_tensors(plain, lambda tensors: tensors.update(meant))
    ours = weights(wrapped)
    same(ours, weights(plain))
    changed = differing(ours, before)
    assert any("vision" in name for name in changed)
    assert any("language" in name for name in changed)


def test_a_quantised_copy_of_a_wrapped_checkpoint_has_no_adapters_left(tmp_path: Path) -> None:
    """Nor does its config say so, by which OpenGVLab's own code would wrap layers again."""
    wrapped, plain = write_original(tmp_path / "wrapped", SPEC), write_original(tmp_path / "plain", SPEC)
    meant = wrap(wrapped, adapted)
    change_tensors(plain, lambda tensors: tensors.update(meant))
    for source in (wrapped, plain):
        quantize(QuantizeOptions(model=str(source), out=f"{source}-int8"), show=False)
    copies = [load_file(tmp_path / f"{name}-int8" / "model.safetensors") for name in ("wrapped", "plain")]
    assert copies[0].keys() == copies[1].keys()
    config = json.loads((tmp_path / "wrapped-int8" / "config.json").read_text())
    assert (config["use_llm_lora"], config["use_backbone_lora"]) == (0, 0)


def test_the_encoder_of_a_wrapped_checkpoint_in_shards(tmp_path: Path) -> None:
    """Each tensor in a shard of its own: those that the tower's matrices are merged of are found by their names."""
    folder = write_original(tmp_path / "wrapped", SPEC)
    wrap(folder, adapted)
    whole = {name: tensor for name, tensor in weights(folder).items() if not name.startswith("language.")}
    tensors = load_file(folder / "model.safetensors")
    places = {name: f"model-{number:05d}-of-{len(tensors):05d}.safetensors" for number, name in enumerate(tensors, 1)}
    for name, place in places.items():
        save_file({name: tensors[name]}, folder / place)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for name, place in places.items():
        if name.startswith("language_model."):
            (folder / place).unlink()
    language = next(name for name in tensors if name.startswith("language_model.") and "lora_A" in name)
    beside = next(name for name in tensors if name.startswith("vision_model.") and name.endswith(".base_layer.weight"))
    base = language.partition(".lora_A")[0] + ".base_layer.weight"  # half of a pair in a file that is opened
    save_file({name: tensors[name] for name in (beside, language, base)}, folder / places[beside])
    found = dict[str, Tensor]()
    Architecture.of(CheckpointFolder.open(folder)).load_encoder(
        torch.float32, TorchOps(), torch.device("cpu"), found.__setitem__, TorchOps().store
    )
    same(found, whole)


def test_a_server_of_tiles_takes_the_towers_part_of_an_adapter(hf: Path, tmp_path: Path) -> None:
    adapter, merged = write_adapter(hf, tmp_path, target_modules=["q_proj", "linear_1"])
    encoders = []
    for folder, given in ((hf, Adapter.open(adapter)), (merged, None)):
        found = dict[str, Tensor]()
        opened = replace(CheckpointFolder.open(folder), adapter=given)
        Architecture.of(opened).load_encoder(
            torch.float32, TorchOps(), torch.device("cpu"), found.__setitem__, TorchOps().store
        )
        encoders.append(found)
    same(*encoders)


def test_answers_and_a_quantised_copy(hf: Path, usual: tuple[Path, Path], tmp_path: Path) -> None:
    adapter, merged = usual
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)

    def answer(model: Path, **more: Any) -> tuple[int, ...]:
        with LLM(str(model), dtype="float32", max_model_len=256, **more) as llm:
            return tuple(llm.generate(["The picture shows"], params)[0].outputs[0].token_ids)

    ours = answer(hf, adapter=str(adapter))
    assert ours == answer(merged)
    assert ours == answer(hf, adapter=str(adapter), tensor_parallel_size=2)
    assert ours != answer(hf)
    for out, model, more in ((tmp_path / "a", hf, {"adapter": str(adapter)}), (tmp_path / "b", merged, {})):
        quantize(QuantizeOptions(model=str(model), out=str(out)), show=False, **more)
    theirs = weights(tmp_path / "b")
    for name, tensor in weights(tmp_path / "a").items():  # a number at a border may round to the other side
        wrong = (tensor.float() - theirs[name].float()).abs()
        assert wrong.max() <= 1, name
        assert wrong.gt(1e-3).float().mean() < 0.01, name


@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_an_adapter_of_a_hub(
    where: str, hub: HubServer, hf: Path, usual: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("tiny/adapter", {path.name: path.read_bytes() for path in usual[0].iterdir()})
    hub.add("tiny/model", {path.name: path.read_bytes() for path in hf.iterdir()})
    config = EngineConfig(model=str(hf), adapter="tiny/adapter", hub=where)
    found = Checkpoint.of(config).folder.adapter
    assert found is not None
    assert sorted(hub.fetched()) == ["adapter_config.json", "adapter_model.safetensors"]
    same(weights(hf, found.folder), weights(hf, usual[0]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Checkpoint.of(config).folder.adapter == found
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name, said in (("model", "has no adapter_config.json"), ("adapter", "is an adapter and no model")):
        changed = EngineConfig(model=f"tiny/{name}", adapter=f"tiny/{name}", hub=where)
        refused(InvalidCheckpoint, lambda changed=changed: Checkpoint.of(changed), said)


def edited(adapter: Path, out: Path, tensors: Callable[[dict[str, Tensor]], Any] | None = None, **config: Any) -> Path:
    """A copy of an adapter with other settings or tensors."""
    shutil.copytree(adapter, out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors is not None:
        found = load_file(out / "adapter_model.safetensors")
        tensors(found)
        save_file(found, out / "adapter_model.safetensors")
    return out


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is [[0, 1]]"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', whose training also changed"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number, found 'much'"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern has '(', which is no pattern"),
        ({"alpha_pattern": {r"(\w+)+x": 2}}, "which repeats a group"),
        ({"alpha_pattern": {".*.*.*.*.*x": 2}}, "more than 4 times"),
        ({"alpha_pattern": {"a": None}}, "alpha_pattern must be a number, found None"),
        ({"alpha_pattern": [2]}, "alpha_pattern must be an object, found [2]"),
    ],
)
def test_settings_that_mean_another_sum_are_refused(
    usual: tuple[Path, Path], tmp_path: Path, setting: dict[str, Any], said: str
) -> None:
    folder = edited(usual[0], tmp_path / "a", **setting)
    refused(InvalidCheckpoint, lambda: Adapter.open(folder), str(folder), said)


def test_an_adapter_of_another_model_is_refused(hf: Path, usual: tuple[Path, Path], tmp_path: Path) -> None:
    def other_name(tensors: dict[str, Tensor]) -> None:
        name = next(iter(tensors))
        tensors[name.replace("layers.0", "layers.99").replace("layers.1", "layers.99")] = tensors.pop(name)

    def one_matrix(tensors: dict[str, Tensor]) -> None:
        del tensors[next(name for name in tensors if "lora_B" in name)]

    def other_rank(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name] = tensors[name][:, :2].contiguous()

    def no_rank(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name] = torch.empty(len(tensors[name]), 0)
        tensors[name.replace("lora_B", "lora_A")] = torch.empty(0, tensors[name.replace("lora_B", "lora_A")].shape[1])

    def magnitudes(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(3)

    changes = {
        other_name: "has nothing for 1 of",
        one_matrix: "has A alone",
        other_rank: "take the model that",
        no_rank: "take the model that",
        magnitudes: "has magnitudes of the shape [3]",
    }
    for number, (change, said) in enumerate(changes.items()):
        folder = edited(usual[0], tmp_path / str(number), change)
        refused(InvalidCheckpoint, lambda folder=folder: weights(hf, folder), str(folder), said)


def test_an_adapter_over_quantised_weights_is_refused_with_the_way(usual: tuple[Path, Path], hf: Path, tmp_path: Path):
    quantize(QuantizeOptions(model=str(hf), out=str(tmp_path / "int8")), show=False)
    refused(
        InvalidCheckpoint,
        lambda: weights(tmp_path / "int8", usual[0]),
        "expected floats",
        "tilewise quantize MODEL OUT --adapter ADAPTER",
    )


def test_random_weights_are_merged_with_nothing() -> None:
    refused(InvalidConfig, lambda: EngineConfig(adapter="a", load_format="dummy"), "leave one of them out")


def test_what_cannot_be_found(hf: Path, usual: tuple[Path, Path], tmp_path: Path) -> None:
    refused(UnknownModel, lambda: Checkpoint.of(EngineConfig(model=str(hf), adapter="no-such")), "adapter=no-such")
    refused(InvalidCheckpoint, lambda: Checkpoint.of(EngineConfig(model=str(usual[0]))), "is an adapter", "--adapter")
    pickled = edited(usual[0], tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refused(InvalidCheckpoint, lambda: Adapter.open(pickled), "save_pretrained")
    refused(InvalidCheckpoint, lambda: Adapter.open(tmp_path), "has no adapter_config.json")
