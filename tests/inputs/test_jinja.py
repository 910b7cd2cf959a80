"""The checkpoint's own template: what its three known forms are called, where it is found, and what it cannot do."""

import json

import pytest

from tests.inputs.jinjas import HARMFUL, QWEN, plain, with_system
from tilewise.inputs.jinja import CONVERSATIONS, JinjaReport, compare_templates
from tilewise.inputs.templates import SYSTEM_GPT_OSS, SYSTEM_INTERNVL2, SYSTEM_INTERNVL2_5, TEMPLATES
from tilewise.weights.folder import CheckpointFolder, Section

INTERNVL2_5 = TEMPLATES["internvl2_5"]
NO_SYSTEM = "no default system message"
OTHER_SYSTEM = "Its system text is not the one of the training"
NO_PARTS = "It takes text only"


@pytest.fixture
def compare(tmp_path):
    """Files of a checkpoint -> reports."""

    def run(template=INTERNVL2_5, start="", **files) -> tuple[JinjaReport, ...]:
        for name, content in files.items():
            suffix = "jinja" if isinstance(content, str) else "json"
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.{suffix}").write_text(text, encoding="utf-8")
        return compare_templates(CheckpointFolder(tmp_path, Section({}, "config.json")), template, start)

    return run


def verdicts(report: JinjaReport) -> dict[str, str]:
    return {comparison.conversation: comparison.verdict for comparison in report.comparisons}


def all_are(verdict: str) -> dict[str, str]:
    return dict.fromkeys(CONVERSATIONS, verdict)


@pytest.mark.parametrize("picture", ["<image>", "<IMG_CONTEXT>", "<img><IMG_CONTEXT></img>"])
def test_the_corrected_form_is_the_same_however_it_spells_pictures(compare, picture):
    (report,) = compare(chat_template=with_system(SYSTEM_INTERNVL2_5, picture))
    assert verdicts(report) == all_are("same")
    assert not report.differs
    assert report.causes == ()


def test_the_plain_form_lacks_the_system_text(compare):
    (report,) = compare(chat_template=plain())
    assert verdicts(report) == {**all_are("differs"), "a system message": "same"}
    assert len(report.causes) == 1
    assert NO_SYSTEM in report.causes[0]
    first = report.comparisons[0]
    assert first.ours[: first.position] == first.theirs[: first.position] == "<|im_start|>"
    assert first.ours[first.position :].startswith("system\n你是书生·万象")
    assert first.theirs[first.position :] == "user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"


def test_the_language_models_form_has_another_system_text_and_breaks_on_pictures(compare):
    (report,) = compare(chat_template=QWEN)
    expected = {"text alone": "differs", "a picture": "fails", "several turns": "fails", "a system message": "same"}
    assert verdicts(report) == expected
    assert OTHER_SYSTEM in report.causes[0]
    assert "You are Qwen, created by Alibaba Cloud." in report.causes[0]
    assert NO_PARTS in report.causes[1]
    assert "can only concatenate str" in report.comparisons[1].error


def test_a_template_that_prints_lists_takes_text_only(compare):
    (report,) = compare(chat_template=with_system(SYSTEM_INTERNVL2_5).replace("message.content is string", "true"))
    assert verdicts(report)["a picture"] == "differs"
    assert [NO_PARTS in cause for cause in report.causes] == [True]


@pytest.mark.parametrize("name", ["Hermes-2", "internlm2-chat"])
def test_a_line_break_that_the_first_generation_did_not_have(compare, name):
    (right,) = compare(TEMPLATES[name], chat_template=with_system(SYSTEM_INTERNVL2, line_break=""))
    assert verdicts(right) == all_are("same")
    (wrong,) = compare(TEMPLATES[name], chat_template=with_system(SYSTEM_INTERNVL2))
    assert verdicts(wrong) == all_are("differs")
    assert wrong.causes == ("It puts a line break after <|im_end|>, the training did not.",)
    (both,) = compare(TEMPLATES[name], chat_template=plain())
    assert len(both.causes) == 2


def test_templates_with_other_turns(compare):
    turns = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>{% endfor %}{{ '<|assistant|>\n' }}"
    head = "{% if messages[0].role != 'system' %}<|system|>\n" + SYSTEM_INTERNVL2 + "<|end|>{% endif %}"
    (report,) = compare(TEMPLATES["phi3-chat"], chat_template=head + turns)
    assert verdicts(report)["text alone"] == verdicts(report)["a system message"] == "same"
    (bare,) = compare(TEMPLATES["phi3-chat"], chat_template=turns)
    assert NO_SYSTEM in bare.causes[0]


def test_the_gpt_oss_template_with_the_date_of_today(compare):
    system = SYSTEM_GPT_OSS.replace("2025-08-06", '{{ strftime_now("%Y-%m-%d") }}')
    head = "<|start|>system<|message|>" + system + "<|end|>"
    turns = (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
    )
    (report,) = compare(TEMPLATES["internvl3_5_gpt_oss"], chat_template=head + turns)
    assert verdicts(report)["text alone"] == "differs"
    assert OTHER_SYSTEM in report.causes[0]


@pytest.mark.parametrize("writes_start", [True, False])
def test_the_start_token_is_no_difference_when_the_tokenizer_adds_it(compare, writes_start):
    source = with_system(SYSTEM_INTERNVL2_5, start="{{ bos_token }}" if writes_start else "")
    config = {"bos_token": {"content": "<s>"}}
    (report,) = compare(start="<s>", chat_template=source, tokenizer_config=config)
    assert verdicts(report) == all_are("same")
    (without,) = compare(start="", chat_template=source, tokenizer_config=config)
    assert without.differs == writes_start


def test_every_file_is_compared_and_equal_ones_once(compare):
    right, wrong = with_system(SYSTEM_INTERNVL2_5), plain()
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": wrong}]
    reports = compare(chat_template=right, tokenizer_config={"chat_template": named, "bos_token": None})
    assert [(report.files, report.differs) for report in reports] == [
        (("chat_template.jinja",), False),
        (("tokenizer_config.json",), True),
    ]
    (both,) = compare(tokenizer_config={"chat_template": right})
    assert both.files == ("chat_template.jinja", "tokenizer_config.json")


def test_the_older_processor_file_and_a_list_without_a_default(compare, tmp_path):
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": [{"name": "x", "template": plain()}]}))
    (report,) = compare()
    assert report.files == ("chat_template.json",)


@pytest.mark.parametrize("value", [None, 3, [], ["text"]])
def test_a_checkpoint_without_a_template(compare, value):
    assert compare(tokenizer_config={"chat_template": value}) == ()


def test_tags_and_functions_that_transformers_gives_to_templates(compare):
    source = (
        "{% for message in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ message | tojson }}{% endgeneration %}{% endfor %}{{ raise_exception('only so far') }}"
    )
    (report,) = compare(chat_template=source)
    assert {comparison.error for comparison in report.comparisons} == {"TemplateError: only so far"}


@pytest.mark.parametrize("source", ["{% for %}", "{{ nothing.there }}", "{{ 1 / 0 }}", "{% unknown %}"])
def test_a_broken_template_is_a_finding(compare, source):
    (report,) = compare(chat_template=source)
    assert verdicts(report) == all_are("fails")
    assert all(comparison.error for comparison in report.comparisons)
    assert report.causes == ()


@pytest.mark.parametrize("source", HARMFUL.values(), ids=HARMFUL)
def test_a_harmful_template_neither_hangs_nor_escapes(compare, source):
    (report,) = compare(chat_template=source)
    assert report.differs
    shown = json.dumps([[comparison.theirs, comparison.error] for comparison in report.comparisons])
    assert "root:" not in shown
    assert "builtin" not in shown
    assert len(shown) < 3000


def test_one_conversation_that_does_not_end_leaves_the_others(compare):
    source = (
        with_system(SYSTEM_INTERNVL2_5) + "{% if messages | length == 3 %}" + HARMFUL["endless loops"] + "{% endif %}"
    )
    (report,) = compare(chat_template=source)
    found = verdicts(report)
    assert found["text alone"] == found["a picture"] == "same"
    assert "did not end within" in report.comparisons[2].error


@pytest.mark.parametrize(
    "source",
    ["{{ 'a b' | wordwrap(1) }}", "{{ '<b>a</b>&amp;' | striptags }}", "{{ [1] | pprint }}", "{{ lipsum(1) }}"],
)
def test_filters_work_although_nothing_can_be_opened(compare, source):
    (report,) = compare(chat_template=source)
    assert verdicts(report) == all_are("differs")


def test_excerpts_of_a_difference_show_where_they_are_cut(compare):
    (early,) = compare(chat_template="other" + plain())
    assert early.comparisons[0].position == 0
    assert early.comparisons[0].theirs.startswith("other<|im_start|>")
    late = with_system(SYSTEM_INTERNVL2_5).replace("{{- message.content }}", "{{- 'B' * 99 }}")
    (report,) = compare(chat_template=late)
    found = report.comparisons[0]
    assert found.ours[: found.position] == found.theirs[: found.position] == "…_end|>\n<|im_start|>user\n"
    assert found.ours[found.position :] == "Who are you?<|im_end|>\n<|im_start|>assistant\n"
    assert found.theirs[found.position :] == "B" * 60 + "…"
