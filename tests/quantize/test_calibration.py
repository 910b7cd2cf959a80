"""Samples, what is measured on them, and what error feedback makes of it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.models.driving import normalised, prompt_of, random_tiles
from tests.tiny import SPECS, reference_model, write_hf
from tests.weights.broken import refused
from tilewise.errors import InvalidConfig, InvalidMedia, InvalidRequest
from tilewise.models.load import Architecture
from tilewise.quantize.activations import SampleActivations
from tilewise.quantize.calibration import samples_of, shipped_samples
from tilewise.quantize.rounding import Rounding, round_matrix, round_with_feedback
from tilewise.sampling_params import SamplingParams
from tilewise.types import ImageInput, Request, Tile
from tilewise.weights.files import SafetensorFiles
from tilewise.weights.folder import CheckpointFolder


def test_a_folder_of_pictures_and_prompts(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("What is tea?")
    (tmp_path / "inner").mkdir()
    Image.new("RGB", (40, 20), "blue").save(tmp_path / "inner" / "c.jpg")
    lines = ['"A bare prompt"', '{"prompt": "With a picture", "images": ["inner/c.jpg"]}', ""]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    (tmp_path / ".hidden").write_text("no picture at all")
    found = list(samples_of(tmp_path))
    assert [sample.turns[0] for sample in found[1:]] == ["What is tea?", "A bare prompt", "With a picture"]
    assert [[picture.size for picture in sample.pictures] for sample in found] == [[(30, 20)], [], [], [(40, 20)]]


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("a.png", b"not a picture", InvalidMedia, ("a.png",)),
        ("a.png", "cut", InvalidMedia, ("a.png",)),
        ("a.docx", b"PK", InvalidMedia, ("a.docx",)),
        ("a.txt", b"\xff\xfe\x00", InvalidRequest, ("a.txt", "UTF-8")),
        ("a.jsonl", b'"one"\n{"promt": "two"}', InvalidRequest, ("a.jsonl:2", "promt")),
        ("a.jsonl", b"one", InvalidRequest, ("a.jsonl:1", "JSON")),
        ("a.jsonl", b'{"prompt": "x", "images": ["../b.png"]}', InvalidMedia, ("outside",)),
        ("a.jsonl", b'{"prompt": "x", "images": ["b.png"]}', InvalidMedia, ("b.png", "no such file")),
        (".b", b"", InvalidConfig, ("no files",)),
    ],
)
def test_what_is_no_sample(tmp_path, name, content, kind, words):
    if content == "cut":
        Image.effect_noise((200, 200), 80).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:9000]
    (tmp_path / name).write_bytes(content)
    refused(kind, lambda: list(samples_of(tmp_path)), *words)


def test_the_set_that_ships():
    found = list(shipped_samples())
    assert sum(bool(sample.pictures) for sample in found) > 15
    assert len({sample.turns[0] for sample in found}) > 20
    assert [len(sample.pictures) for sample in found] == [len(sample.pictures) for sample in shipped_samples()]


def request_of(spec: object, ids: list[int], pixels: Tensor, start: int) -> Request:
    tiles = tuple(Tile(bytes([number]), tile.numpy()) for number, tile in enumerate(pixels))
    images = (ImageInput(tiles, (1, 1), (56, 56), start),) if tiles else ()
    return Request("0", tuple(ids), SamplingParams(), images)


@pytest.mark.parametrize("name", ["qwen2-300m", "qwen3-6b-tied", "qwen3moe-300m-head"])
def test_what_layers_read_is_what_they_read_in_transformers(tmp_path, name):
    """Moments, lowest and highest number of some layers' inputs, over two samples, one of them with two tiles."""
    spec = SPECS[name]
    folder = write_hf(tmp_path / "hf", spec)
    theirs = reference_model(folder)
    seen: dict[str, list[Tensor]] = {}
    hooked = {
        "vision.layers.1.mlp.fc2": theirs.model.vision_tower.encoder.layer[1].mlp.fc2,
        "language.model.layers.0.self_attn.k_proj": theirs.model.language_model.layers[0].self_attn.k_proj,
        "language.model.layers.1.self_attn.o_proj": theirs.model.language_model.layers[1].self_attn.o_proj,
    }
    for reader, module in hooked.items():
        module.register_forward_pre_hook(lambda _, x, reader=reader: seen.setdefault(reader, []).append(x[0]) and None)
    pixels, text = random_tiles(spec, 2), [40, 41, 42, 43]
    ids = prompt_of(spec, [2])
    with torch.inference_mode():
        theirs(input_ids=torch.tensor([ids]), pixel_values=normalised(pixels))
        theirs(input_ids=torch.tensor([text]))
        architecture = Architecture.of(CheckpointFolder.open(folder))
        requests = [request_of(spec, ids, pixels, start=5), request_of(spec, text, pixels[:0], 0)]
        found = SampleActivations(architecture, SafetensorFiles(folder), requests, moments=True)
        for reader in hooked:
            x = torch.cat([some.flatten(0, -2) for some in seen[reader]])
            ours = found.inputs_of(reader[: reader.rindex(".", 0, reader.rindex("."))], reader)
            assert ours.moments is not None
            assert ours.lows is not None
            assert ours.highs is not None
            assert torch.allclose(ours.lows, x.amin(0).clamp(max=0), rtol=1e-4, atol=1e-6)
            assert torch.allclose(ours.highs, x.amax(0).clamp(min=0), rtol=1e-4, atol=1e-6)
            assert torch.allclose(ours.moments[0], x.T @ x, rtol=1e-3, atol=1e-3)


def correlated(inputs: int, seed: int = 0) -> Tensor:
    """Activations [500, inputs] of which some matter more, and which have to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.rand(inputs, generator=generator).exp()
    return torch.randn(500, inputs, generator=generator) @ mix


@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_error_feedback_changes_products_less(group, asymmetric):
    x = correlated(192)
    matrix = torch.randn(64, 192, generator=torch.Generator().manual_seed(1))
    rounding = Rounding(4, group, asymmetric)
    nearest = round_matrix(matrix, rounding, "matrix").dequantised()
    chosen = round_with_feedback(matrix, [x.T @ x], rounding, "matrix").dequantised()
    exact = x @ matrix.T
    assert (x @ chosen.T - exact).norm() < 0.7 * (x @ nearest.T - exact).norm()


def test_runs_of_inputs_are_rounded_one_by_one():
    """As they are where a matrix is too wide for all products of its inputs to be kept."""
    x, matrix = correlated(128), torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    rounding, moments = Rounding(4, 32), x.T @ x
    runs = [moments[:64, :64], moments[64:, 64:]]
    whole = round_with_feedback(matrix, runs, rounding, "matrix").dequantised()
    for part, run in ((slice(0, 64), runs[0]), (slice(64, 128), runs[1])):
        assert torch.equal(whole[:, part], round_with_feedback(matrix[:, part], [run], rounding, "x").dequantised())


def test_without_activations_numbers_go_to_the_nearest():
    matrix, rounding = torch.randn(8, 64), Rounding(4, 32)
    found = round_with_feedback(matrix, [torch.zeros(64, 64)], rounding, "matrix")
    assert torch.equal(found.levels, round_matrix(matrix, rounding, "matrix").levels)


def test_texts_alone_do_not_calibrate_a_tower(tmp_path):
    from tilewise.quantize import QuantizeOptions
    from tilewise.quantize.run import quantize

    source = write_hf(tmp_path / "source", SPECS["qwen2-300m"])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("What is tea?")
    options = QuantizeOptions(
        model=str(source), out=str(tmp_path / "out"), scheme="w4a16", vision=True, calibration=str(tmp_path / "texts")
    )
    refused(InvalidConfig, lambda: quantize(options, show=False), "needs pictures")


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("a.txt", " \n", InvalidRequest, "a.txt is empty"),
        ("a.jsonl", "\n\n", InvalidRequest, "a.jsonl has no prompts"),
        ("a.jsonl", '"Hi"\n{"prompt": "What?", "images": ["nope.png"]}', InvalidMedia, "a.jsonl:2: "),
    ],
)
def test_files_without_prompts_and_lines_without_their_pictures_are_named(tmp_path, name, text, kind, said):
    (tmp_path / name).write_text(text)
    refused(kind, lambda: list(samples_of(tmp_path)), said)
