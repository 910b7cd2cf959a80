"""Prompts, tiles and end tokens of relatives, as their own templates and configs have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.inputs.jinjas import plain, with_system
from tilewise.inputs.jinja import compare_templates
from tilewise.inputs.pieces import Message, to_string
from tilewise.inputs.prepare import Preparer, TemplateOptions
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams, StructuredOutputsParams
from tilewise.twin import write_twin
from tilewise.weights.folder import CheckpointFolder

REASONER = (
    "You are an expert reasoner with extensive experience in all areas. You approach problems through systematic "
    "thinking and rigorous reasoning. Your response should reflect deep understanding and precise logical thinking, "
    "making your solution path and reasoning clear to others. Please put your thinking process within "
    "<think>...</think> tags."
)
THINKING = (
    """
{%- if messages[0].role != 'system' and (enable_thinking is not defined or enable_thinking) %}
    {{- '<|im_start|>system\\nREASONER<|im_end|>\\n' }}
{%- endif %}
""".replace("REASONER", REASONER)
    + plain().replace(
        "{{- '<|im_start|>assistant\\n' }}",
        "{{- '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>' }}{% endif %}",
    )
)
"""The form of Intern-S1's chat_template.jinja."""
OCR = with_system("You read documents.").replace(
    "{{- '<|im_start|>assistant\\n' }}",
    "{{- '<|im_start|>assistant\\n' }}{% if enable_thinking %}{{ '<think>\\n' }}{% endif %}",
)
DEEPSEEK = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<｜User｜>' }}
        {%- if message.content is string %}{{ message.content }}
        {%- else %}{% for part in message.content %}{{ part.text or '<image>\\n' }}{% endfor %}{% endif %}
    {%- elif message.role == 'system' %}{{ message.content }}
    {%- else %}{{ '<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}THINK{% endif %}
"""
QUESTION = [Message("user", "Who are you?")]

SpecOf = Callable[..., InputSpec]


@pytest.fixture
def spec_of(tmp_path: Path) -> SpecOf:
    """A relative's name, and what its files say beyond the twin's -> what is known of its inputs."""

    def make(name: str, jinja: str | None = None, tokens: tuple[str, ...] = (), **config: Any) -> InputSpec:
        folder = write_twin(name, tmp_path / name.rpartition("/")[2])
        if jinja is not None:
            (folder / "chat_template.jinja").write_text(jinja)
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(written | config))
        definition = json.loads((folder / "tokenizer.json").read_text())
        first = 1 + max(token["id"] for token in definition["added_tokens"])
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in enumerate(tokens, first):
            definition["added_tokens"].append({"id": number, "content": token, "special": True, **flags})
        (folder / "tokenizer.json").write_text(json.dumps(definition))
        return InputSpec.of(CheckpointFolder.open(folder), Tokenizer.from_folder(folder))

    return make


def prompt(spec: InputSpec, asked: bool | None = None, messages: list[Message] = QUESTION) -> str:
    return to_string(spec.template.render(messages, spec.template.thinks_if(asked)))


def test_intern_s1_thinks_unless_it_is_told_not_to(spec_of: SpecOf, tmp_path: Path) -> None:
    spec = spec_of("internlm/Intern-S1-mini", THINKING)
    question = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(spec) == f"<|im_start|>system\n{REASONER}<|im_end|>\n{question}<think>"
    assert prompt(spec, asked=False) == question
    told = [Message("system", "Be brief."), *QUESTION]
    assert prompt(spec, messages=told) == f"<|im_start|>system\nBe brief.<|im_end|>\n{question}<think>"
    (report,) = compare_templates(CheckpointFolder.open(tmp_path / "Intern-S1-mini"), spec.template)
    assert not report.differs


def test_intern_s1_has_no_thoughts_before_an_answer_of_a_form(spec_of: SpecOf) -> None:
    template = spec_of("internlm/Intern-S1").template
    assert template.thinks_if(None)
    assert not template.thinks_if(None, formed=True)
    assert template.thinks_if(True, formed=True)


def test_thoughts_before_a_form_are_begun_by_the_answer(spec_of: SpecOf, tmp_path: Path) -> None:
    """By its first token, which the form says: the prompt must not have it as well."""
    spec, form = spec_of("internlm/Intern-S1-mini"), StructuredOutputsParams(choice=["yes", "no"])
    tokenizer = Tokenizer.from_folder(tmp_path / "Intern-S1-mini")
    preparer = Preparer(spec, tokenizer, 2048)
    request = preparer.chat(QUESTION, [], SamplingParams(structured_outputs=form), TemplateOptions(thinking=True))
    assert request.thinking == (tokenizer.special_id("<think>"), tokenizer.special_id("</think>"))
    assert REASONER in (request.prompt or "")
    assert (request.prompt or "").endswith("<|im_start|>assistant\n")
    plain = preparer.chat(QUESTION, [], SamplingParams(structured_outputs=form))
    assert plain.thinking is None
    assert REASONER not in (plain.prompt or "")


def test_qianfan_ocr_asks_what_its_own_template_asks(spec_of: SpecOf) -> None:
    spec = spec_of("baidu/Qianfan-OCR", OCR)
    beginning = (
        "<|im_start|>system\nYou read documents.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt(spec) == beginning
    assert prompt(spec, asked=True) == beginning + "<think>\n"


@pytest.mark.parametrize("jinja", [None, "{{ raise_exception('no') }}", "{{ messages[0].content }}"])
def test_without_a_template_that_can_be_followed_it_has_the_built_in_one(spec_of: SpecOf, jinja: str | None) -> None:
    spec = spec_of("baidu/Qianfan-OCR", jinja)
    assert prompt(spec) == "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(spec, asked=True).endswith("<|im_start|>assistant\n<think>")


def test_qianfan_ocr_cuts_pictures_as_its_config_says(spec_of: SpecOf) -> None:
    cut = spec_of("baidu/Qianfan-OCR", min_dynamic_patch=2, max_dynamic_patch=16, use_thumbnail=False).tiling
    assert (cut.min_tiles, cut.max_tiles, cut.thumbnail, cut.dynamic) == (2, 16, False, True)


R1_TOKENS = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>")


@pytest.mark.parametrize(("begun", "thinks"), [("<think>\n", True), ("", False)])
def test_skywork_r1v_speaks_as_deepseeks_distilled_models_do(
    spec_of: SpecOf, begun: str, thinks: bool, tmp_path: Path
) -> None:
    jinja = DEEPSEEK.replace("THINK", "{{ '" + begun.replace("\n", "\\n") + "' }}")
    spec = spec_of("Skywork/Skywork-R1V-38B", jinja, R1_TOKENS, template="skywork")
    turns = [Message("system", "Be brief."), *QUESTION, Message("assistant", "R1V."), Message("user", "Since when?")]
    assert prompt(spec, messages=turns) == (
        "Be brief.<｜User｜>Who are you?<｜Assistant｜>R1V.<｜end▁of▁sentence｜><｜User｜>Since when?<｜Assistant｜>"
        + begun
    )
    assert spec.template.thinks == thinks
    assert spec.template.name == "deepseek-r1"
    assert Tokenizer.from_folder(tmp_path / "Skywork-R1V-38B").special_id("<｜end▁of▁sentence｜>") in spec.end_ids


def test_later_skywork_models_speak_chatml(spec_of: SpecOf) -> None:
    spec = spec_of("Skywork/Skywork-R1V3-38B", plain(), template="skywork")
    assert prompt(spec) == "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        (
            "InternVL-Chat-V1-5",
            "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).<|im_end|>",
        ),
        (
            "Mini-InternVL-Chat-2B-V1-5",
            "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).",
        ),
        ("Mini-InternVL-Chat-4B-V1-5", "<|system|>\nYou are an AI assistant whose name is Phi-3.<|end|><|user|>\n"),
    ],
)
def test_internvl_1_5_has_the_system_text_of_its_time(spec_of: SpecOf, name: str, beginning: str) -> None:
    assert prompt(spec_of(name)).startswith(beginning)


@pytest.mark.parametrize("folder", ["models--OpenGVLab--InternVL-Chat-V1-5/snapshots/abc", "internvl_chat_v1_5"])
def test_internvl_1_5_is_known_by_the_name_of_its_folder(folder: str, tmp_path: Path) -> None:
    path = write_twin("InternVL2-26B", tmp_path / folder)
    assert InputSpec.of(CheckpointFolder.open(path), Tokenizer.from_folder(path)).template.name == "internlm2-chat-v1-5"
