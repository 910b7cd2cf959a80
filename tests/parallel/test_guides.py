"""Commands of deployment guides for several devices, as printed but for port and folder, on twins of their models.

Source: vllm-ascend's guide of InternVL3.5 (38B in W8A8 on four devices, 241B-A28B in W8A8 on sixteen).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.flags import commands
from tests.parallel.test_engine import ranks_of
from tests.remote.test_supervisor import is_alive
from tests.served import PICTURES, Served
from tests.tiny import TinySpec, write_original
from tilewise.quantize import MODELSLIM, QuantizeOptions
from tilewise.quantize.run import quantize
from tilewise.twin.specs import TWINS

SIZES = {"heads": 16, "kv_heads": 4, "head_dim": 8, "hidden": 128, "max_position": 40960}
DENSE = replace(TWINS["InternVL3_5-38B"], intermediate=128, **SIZES)
EXPERTS = replace(TWINS["InternVL3_5-241B-A28B"], experts=20, expert_intermediate=30, **SIZES)

COMMANDS = {
    "38B": (DENSE, commands.QUANTISED_38B, {**commands.ASCEND, "VLLM_ASCEND_ENABLE_FLASHCOMM1": "0"}),
    "241B": (EXPERTS, commands.QUANTISED_241B, commands.ASCEND),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_starts_answers_and_stops(tmp_path: Path, name: str) -> None:
    spec, (_, _, _, *flags), variables = COMMANDS[name]
    server = Served(str(w8a8_twin(tmp_path, spec)), *flags, environment=variables)
    try:
        server.wait_until_up()
        body = server.client.post("/v1/chat/completions", json=the_guides_question(), timeout=120).json()
        assert body["model"] == "internvl3_5"
        assert body["choices"][0]["message"]["content"]
        assert body["usage"]["prompt_tokens"] > 4
        ranks = ranks_of(server.process.pid)
    finally:
        status = server.stop()
    assert status == 0, server.log
    assert len(ranks) > 1
    assert not any(map(is_alive, ranks))


def w8a8_twin(folder: Path, spec: TinySpec) -> Path:
    """As the guides' checkpoints are: written by ModelSlim, decoder in W8A8."""
    source, out = folder / "floats", folder / "w8a8"
    write_original(source, spec)
    quantize(QuantizeOptions(model=str(source), out=str(out), format=MODELSLIM), show=False)
    return out


def the_guides_question() -> dict[str, object]:
    """The guide's body, with a picture of this machine."""
    picture = next(iter(sorted(PICTURES.glob("*.png"))))
    parts = [
        {"type": "image_url", "image_url": {"url": f"file://{picture}"}},
        {"type": "text", "text": "What is the text in the illustration?"},
    ]
    system = {"role": "system", "content": "You are a helpful assistant."}
    return {"model": "internvl3_5", "messages": [system, {"role": "user", "content": parts}], "max_tokens": 8}
