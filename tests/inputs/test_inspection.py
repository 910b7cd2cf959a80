"""What an inspection says of a checkpoint, and what it finds wrong with one."""

import dataclasses
import json

import pytest

from tests.inputs.jinjas import plain, with_system
from tests.inputs.vocabulary import CONTROL, small_definition
from tests.tiny import END_IDS, IMAGE_ID, SPECIAL_IDS, SPECS, write_hf, write_original
from tilewise.config import EngineConfig
from tilewise.errors import InvalidCheckpoint
from tilewise.inputs.inspection import (
    Conversation,
    Flash,
    Inspection,
    NamedToken,
    StopToken,
    VisionSize,
    inspect_checkpoint,
)
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.inputs.pieces import Message
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.templates import SYSTEM_INTERNVL2_5, TEMPLATES
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.weights.folder import CheckpointFolder

ASKED = Conversation([Message("user", "What is this?", images=1)], [(1024, 768)])
END, START = END_IDS
SPEC = dataclasses.replace(SPECS["qwen2-300m"], max_position=4096)


@pytest.fixture(params=["original", "hf"])
def folder(request, tmp_path):
    write = {"original": write_original, "hf": write_hf}[request.param]
    return write(tmp_path / request.param, SPEC)


@pytest.fixture
def original(tmp_path):
    return write_original(tmp_path, SPEC)


def inspect(folder, conversation=ASKED, **options) -> Inspection:
    found = inspect_checkpoint(ModelInputs.of(EngineConfig(model=str(folder), **options)), conversation)
    return dataclasses.replace(found, model="tiny")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_everything_is_known_without_the_weights(folder):
    (folder / "model.safetensors").unlink()
    found = inspect(folder)
    assert (found.model, found.path, found.format) == ("tiny", str(folder), folder.name)
    assert found.language == "Qwen2ForCausalLM"
    assert found.vision == VisionSize("InternViT", 24, 2)
    assert (found.template.name, found.template.system_text) == ("internvl2_5", SYSTEM_INTERNVL2_5)
    assert found.tokens.start is None
    assert [token.id for token in found.tokens.image] == [SPECIAL_IDS["<img>"], SPECIAL_IDS["</img>"], IMAGE_ID]
    assert (found.tiling.tile_size, found.tiling.max_tiles, found.tokens_per_tile) == (56, 12, 4)
    assert (found.context_length, found.vocabulary.rows) == (4096, 295)
    assert found.vocabulary.tokenizer_size == max(SPECIAL_IDS.values()) + 1
    assert (found.flash, found.warnings, found.jinja, found.differs) == (None, (), (), False)
    assert found.example.pictures[0].grid == (4, 3)


def test_both_formats_ask_the_same(tmp_path):
    one, two = (write(tmp_path / write.__name__, SPEC) for write in (write_original, write_hf))
    assert inspect(one).example == inspect(two).example


def test_where_the_template_comes_from(tmp_path):
    assert inspect(write_original(tmp_path / "a", SPEC)).template.source == "config.json: template"
    source = inspect(write_hf(tmp_path / "b", SPEC)).template.source
    assert source == "default of the hf format, config.json names none"


def test_every_stop_token_has_its_sources(original):
    change(original / "generation_config.json", eos_token_id=[END, 5, 9999])
    change(original / "config.json", eos_token_id=START)
    found = inspect(original).tokens.stops
    assert found == (
        StopToken(5, Tokenizer.from_folder(original).token_text(5), ("generation_config.json",)),
        StopToken(START, "<|endoftext|>", ("tokenizer", "config.json")),
        StopToken(END, "<|im_end|>", ("template internvl2_5", "generation_config.json")),
        StopToken(9999, None, ("generation_config.json",)),
    )
    spec = InputSpec.of(CheckpointFolder.open(original), Tokenizer.from_folder(original))
    assert {stop.id for stop in found} == spec.end_ids


def test_the_start_token_is_named_and_counted(original):
    change(original / "tokenizer_config.json", add_bos_token=True, bos_token="<|endoftext|>")
    found = inspect(original)
    assert found.tokens.start == NamedToken(START, "<|endoftext|>")
    assert found.example.ids[0] == START
    assert found.example.parts[0].kind == "start"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template(original, name):
    change(original / "config.json", template=name)
    literal = "".join(TEMPLATES[name].turns.values()) + TEMPLATES[name].opening + "".join(TEMPLATES[name].stop_tokens)
    more = sorted({*TEMPLATES[name].special.findall(literal)} - {*CONTROL})
    (original / "tokenizer.json").write_text(small_definition(*more))
    found = inspect(original)
    assert found.template.name == name
    begun = TEMPLATES[name].think_opening if TEMPLATES[name].thinks else ""
    assert found.example.prompt.endswith(TEMPLATES[name].opening + begun)
    assert TEMPLATES[name].system in found.example.prompt
    assert sum(part.tokens for part in found.example.parts) == found.example.total_tokens
    stops = {stop.text for stop in found.tokens.stops if f"template {name}" in stop.sources}
    assert stops == {*TEMPLATES[name].stop_tokens}


def test_tiling_options_change_the_example(original):
    few, many = (inspect(original, mm_processor_kwargs={"max_dynamic_patch": tiles}) for tiles in (1, 40))
    assert few.example.pictures[0].tiles == 1
    assert many.tiling.max_tiles == 40
    assert many.example.total_tokens > few.example.total_tokens


def test_flash(original):
    change(original / "config.json", flash_mode=True, flash_relative_threshold=0.5)
    assert inspect(original).flash == Flash(0.5, None, 1)
    change(original / "config.json", flash_absolute_threshold="high")
    with pytest.raises(InvalidCheckpoint, match="flash_absolute_threshold must be a number, found 'high'"):
        inspect(original)


def test_a_tokenizer_of_another_model(original):
    config = json.loads((original / "config.json").read_text())
    config["llm_config"]["vocab_size"] = IMAGE_ID
    (original / "config.json").write_text(json.dumps(config))
    (warning,) = inspect(original).warnings
    assert "tokenizer and config are of different models, and <IMG_CONTEXT> has no row" in warning


def test_an_image_token_that_config_json_gets_wrong(tmp_path):
    folder = write_hf(tmp_path, SPEC)
    change(folder / "config.json", image_token_id=7)
    (warning,) = inspect(folder).warnings
    assert f"image_token_id in config.json is 7, the tokenizer says {IMAGE_ID} for <IMG_CONTEXT>" in warning


def test_a_prompt_that_does_not_fit(original):
    many = Conversation([Message("user", "", images=90)], [(1024, 768)] * 90)
    (warning,) = inspect(original, many).warnings
    assert "the context holds 4096" in warning


def test_a_stop_token_that_the_tokenizer_lacks(original):
    definition = json.loads((original / "tokenizer.json").read_text())
    for token in definition["added_tokens"]:
        token["content"] = token["content"].replace("<|endoftext|>", "<|other|>")
    (original / "tokenizer.json").write_text(json.dumps(definition))
    change(original / "config.json", template="Hermes-2")
    (warning,) = inspect(original).warnings
    assert "ends answers with <|endoftext|>, which the tokenizer does not have" in warning


def test_another_architecture_is_refused(original):
    change(original / "config.json", architectures=["InternVLChatModul"])
    with pytest.raises(InvalidCheckpoint, match="Did you mean InternVLChatModel"):
        inspect(original)


@pytest.mark.parametrize(("source", "differs"), [(with_system(SYSTEM_INTERNVL2_5), False), (plain(), True)])
def test_the_checkpoints_own_template_is_compared_and_changes_nothing(folder, source, differs):
    before = inspect(folder)
    (folder / "chat_template.jinja").write_text(source)
    after = inspect(folder)
    assert after.differs == differs
    assert dataclasses.replace(after, jinja=()) == before
