"""From an id on a hub to an answer: the same as from the folder that the hub serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.weights.hub_server import HubServer
from tilewise import LLM, SamplingParams

PROMPT = "<|im_start|>user\nthe rain in<|im_end|>\n<|im_start|>assistant\n"
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("where", ["huggingface", "modelscope"])
def test_an_id_answers_as_its_folder_does(
    where: str, hub: HubServer, checkpoint: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in checkpoint.items():
        (folder / name).write_bytes(content)
    hub.add("tiny/model", checkpoint)
    options = {"max_model_len": 64, "dtype": "float32"}
    with LLM(str(folder), **options) as local, LLM("tiny/model", hub=where, **options) as downloaded:
        expected, found = (llm.generate(PROMPT, GREEDY)[0].outputs[0] for llm in (local, downloaded))
    assert len(found.token_ids) == 8
    assert found.token_ids == expected.token_ids
    assert found.text == expected.text
