"""What is decided before the engine starts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.server.asking import SERVED, ask
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig, InvalidField
from tilewise.server.assemble import assemble, max_answers
from tilewise.server.config import ServerConfig


def test_a_prompt_may_have_as_many_answers_as_run_at_once_unless_it_is_said(monkeypatch):
    monkeypatch.delenv("VLLM_MAX_N_SEQUENCES", raising=False)
    served = replace(SERVED, max_answers=max_answers(8))
    assert ask(served, n=8).sampling.n == 8
    with pytest.raises(InvalidField, match=r"n=9 is above this server's limit of 8 .*VLLM_MAX_N_SEQUENCES=9") as caught:
        ask(served, n=9)
    assert caught.value.param == "n"
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "9")
    assert ask(replace(SERVED, max_answers=max_answers(8)), n=9).sampling.n == 9
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "20000")
    assert max_answers(8) == 16384, "what SamplingParams takes"


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_most_of_answers_that_is_no_number(monkeypatch, value):
    monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", value)
    with pytest.raises(InvalidConfig, match="VLLM_MAX_N_SEQUENCES must be a whole number of at least 1 "):
        max_answers(8)


def test_a_misspelt_option_of_the_template_costs_no_loading():
    config = ServerConfig(default_chat_template_kwargs={"enable_thinkin": True})
    with pytest.raises(InvalidField, match=r"Did you mean enable_thinking\?"):
        asyncio.run(assemble(EngineConfig(), config, process=None))
