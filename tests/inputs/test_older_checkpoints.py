"""Checkpoints whose tokenizer is a sentencepiece model answer, end to end; ids that the model has no row for do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from tests.inputs.kinds import KINDS
from tests.tiny import SPECS, write_original
from tilewise import LLM, SamplingParams
from tilewise.errors import InvalidCheckpoint


@pytest.mark.parametrize(
    ("spec", "kind"),
    [("internlm2-300m", "internlm2"), ("internlm3-300m-head", "internlm3"), ("phi3-300m", "phi3"), ("llama-6b", "yi")],
)
def test_an_answer_from_a_folder_without_tokenizer_json(tmp_path, spec, kind):
    write_original(tmp_path, replace(SPECS[spec], vocab=520))
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = KINDS[kind](tmp_path).tokenizer
    llm = LLM(model=str(tmp_path), max_model_len=512, dtype="float32")
    prompt = {"prompt": "<image>\nthe panda", "multi_modal_data": {"image": Image.new("RGB", (56, 56))}}
    (output,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    answer = output.outputs[0]
    assert len(answer.token_ids) == 8
    assert answer.text == tokenizer.decode(answer.token_ids)


def test_an_image_token_beyond_the_rows_of_the_model_is_refused(tmp_path):
    write_original(tmp_path, replace(SPECS["internlm2-300m"], vocab=300))
    (tmp_path / "tokenizer.json").unlink()
    number = KINDS["internlm2"](tmp_path).tokenizer.image_context_id
    with pytest.raises(InvalidCheckpoint, match=f"<IMG_CONTEXT> has id {number}, the vocabulary only 300 rows"):
        LLM(model=str(tmp_path), max_model_len=512, dtype="float32")
