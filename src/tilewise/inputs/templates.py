"""Conversation templates of each InternVL generation: messages in, one prompt out.

The strings are those the models were trained with (OpenGVLab/InternVL, `internvl/conversation.py`). They are built in
because the Jinja files of several checkpoints differ from the training prompt: some carry another model's system text,
some none. System texts of InternVL 1.5 are what LMDeploy (`internvl-internlm2`) and ms-swift (`internvl`,
`internvl_phi3`) have for its checkpoints, whose own `conversation.py` is code and not fetched. Intern-S1's is in its
`chat_template.jinja`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tilewise.errors import InvalidRequest
from tilewise.inputs.pieces import ROLES, Message, Part, PartsOrder, Piece, Special, Text, join_text
from tilewise.inputs.tool_text import MARKS as TOOL_MARKS
from tilewise.inputs.tool_text import TOOL_FORMS, ToolForm

SYSTEM_INTERNVL1_5 = "You are an AI assistant whose name is InternLM (书生·浦语)."
SYSTEM_INTERNVL1_5_PHI3 = "You are an AI assistant whose name is Phi-3."
SYSTEM_INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
SYSTEM_GPT_OSS = """\
You are InternVL, a large language model trained by Shanghai AI Laboratory.
Knowledge cutoff: 2024-06
Current date: 2025-08-06

Reasoning: low

# Valid channels: final. Channel must be included for every message."""
SYSTEM_THINKING = """\
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the \
answer from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section."""
SYSTEM_INTERN_S1 = (
    "You are an expert reasoner with extensive experience in all areas. You approach problems through systematic "
    "thinking and rigorous reasoning. Your response should reflect deep understanding and precise logical thinking, "
    "making your solution path and reasoning clear to others. Please put your thinking process within "
    "<think>...</think> tags."
)
Ending = Literal["open", "continue", "end"]
"""The end of a prompt, behind the last message: the model's turn begins; that message goes on; nothing."""
THINK, THOUGHT = "<think>", "</think>"
MARKS = (THINK, THOUGHT, *TOOL_MARKS)
"""Words of templates that are tokens in some vocabularies and characters in others."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a message in an answer: from one of `starts` to `end`, what the model writes is not its text."""

    starts: tuple[str, ...]
    end: str


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of a prompt."""

    role: str
    body: list[Piece]
    whole: bool = False
    """True = header and closing are in the body."""


@dataclass(frozen=True)
class Template:
    """A conversation template. `{}` in a turn's form stands for its text; special tokens are written out."""

    name: str
    system: str
    turns: dict[str, str]
    opening: str  # what makes the model speak
    stop_tokens: tuple[str, ...]
    thinking: str | None = None
    """System text that asks for reasoning; None = no model of this template was trained to reason."""
    thinks: bool = False
    """True = prompts ask for reasoning unless they are told not to."""
    think_opening: str = ""
    """Text behind `opening` where reasoning is asked for: answers then begin within it."""
    header: Header | None = None
    tools: ToolForm | None = None
    """Form in which the models were shown tools; None = not at all."""
    any_turn: str = ""
    """The form of a turn of any role, `{role}` for its name: system texts and pictures stand wherever they came.
    Empty = there are `turns` alone: system texts are joined at the start, and pictures are the user's."""
    order: PartsOrder = "media first"
    """Order of the parts of messages, unless the request or the server says another."""
    special: re.Pattern[str] = field(default=re.compile(r"<\|[a-z_]+\|>"), repr=False)

    def with_marks(self, marks: Iterable[str]) -> Template:
        """Return the template for a vocabulary in which these words of it are tokens."""
        pattern = "|".join([self.special.pattern, *map(re.escape, marks)])
        return replace(self, special=re.compile(pattern))

    def with_tools(self, tools: ToolForm) -> Template:
        """Return the template for models that were shown tools in another form."""
        return replace(self, tools=tools)

    def thinks_if(self, asked: bool | None, formed: bool = False) -> bool:
        """Return whether a prompt asks for reasoning. `asked` is what a request says of it.

        `formed`: the answer has a form, which holds from the first token, so that nothing can stand before it unless
        that was asked for.
        """
        return self.thinks and not formed if asked is None else asked

    def ordered(self, interleave: bool) -> Template:
        """Return the template for messages whose parts keep their order; one that loops over parts does so anyway."""
        return replace(self, order="as sent") if interleave and self.order == "media first" else self

    def render(
        self, messages: Sequence[Message], thinking: bool = False, tools: Sequence[str] = (), ending: Ending = "open"
    ) -> list[Piece]:
        """Return the prompt for `messages`. A first message of role system replaces the built-in text; empty = none.

        `tools` are definitions of functions, each a JSON text. Raises InvalidRequest for a message that this template
        has no place for.
        """
        return join_text([piece for part in self.parts(messages, thinking, tools, ending) for piece in part.pieces])

    def parts(
        self, messages: Sequence[Message], thinking: bool = False, tools: Sequence[str] = (), ending: Ending = "open"
    ) -> list[Part]:
        """Return the prompt that `render` joins, part by part; the system message, if there is one, is turn 0."""
        turns = list(messages) if self.any_turn else self._system_first(messages, ending)
        form = self._tool_form() if tools else None
        text = self._thinking_text() if thinking else self.system
        system, seen = self._literal(form.system_text(text) if form else text), 0
        if turns and turns[0].role == "system":
            first = turns.pop(0)
            system, seen = first.body(0, self.order), first.media
        section = self._filled(form.section, form.definitions(tools)) if form else []
        apart = form is not None and form.apart
        if section and not apart:
            system = [*system, Text("\n\n" if join_text(system) else ""), *section]
        system = join_text(system)
        turned = [_Turn("system", system)] if system else []
        turned += [_Turn("system", section, whole=True)] if apart else []
        turned += self._turns(turns, seen)
        parts = [part for number, turn in enumerate(turned) for part in self._parts_of(number, turn)]
        if ending == "open":
            opening = self.opening + (self.think_opening if thinking else "")
            return [*parts, Part("opening", len(turned), "assistant", self._literal(opening))]
        if ending == "continue" and turned and turned[-1].whole:  # the last part is all of it, and no closing
            raise InvalidRequest(
                "The last message cannot go on: calls of tools and their results are closed in themselves by the "
                f"template {self.name}. Leave out continue_final_message, or end with a text."
            )
        return parts[:-1] if ending == "continue" else parts

    def _system_first(self, messages: Sequence[Message], ending: Ending) -> list[Message]:
        """Return the messages with all system texts in one, at the start, a blank line between them.

        Raises InvalidRequest for roles and pictures that a template without `any_turn` has no place for.
        """
        for message in messages:
            if message.role not in (*self.turns, "tool"):
                known = ", ".join((*self.turns, "developer", "tool"))
                raise InvalidRequest(f"The template {self.name} knows the roles {known}, got {message.role!r:.80}.")
            if message.media and message.role != "user":
                raise InvalidRequest(
                    f"The template {self.name} shows pictures and videos in messages of role user alone, "
                    f"got one of role {message.role}: move them into a message of the user."
                )
        texts = [message.text for message in messages if message.role == "system"]
        if not texts:
            return list(messages)
        if ending == "continue" and messages[-1].role == "system" and len(messages) > 1:
            raise InvalidRequest(f"The template {self.name} has system texts at the start: the last cannot go on.")
        return [Message("system", "\n\n".join(texts)), *(turn for turn in messages if turn.role != "system")]

    def _turns(self, messages: Sequence[Message], next_image: int) -> Iterator[_Turn]:
        calls: tuple[str, ...] = ()
        for role, group in itertools.groupby(messages, lambda message: message.role):
            results: list[list[Piece]] = []
            for message in group:
                body = message.body(next_image, self.order)
                next_image += message.media
                if role == "tool":
                    results.append(body)
                    continue
                calls = message.calls
                yield self._called(message.role, body, calls) if calls else _Turn(role, body)
            if results:  # all up to the next turn
                yield _Turn("user", self._results(results, calls), self._tool_form().apart)

    def _called(self, role: str, body: list[Piece], calls: Sequence[str]) -> _Turn:
        """Return a turn of the assistant with calls of tools, one a line; in harmony each is a message."""
        form, said = self._tool_form(), body != [Text("")]
        made = [self._filled(form.call, *form.call_texts(call)) for call in calls]
        if form.preamble:
            before = self._filled(form.preamble, body) if said else []
            return _Turn(role, [*before, *itertools.chain(*made)], whole=True)
        gap = "" if form.apart else "\n"
        return _Turn(role, [*body, Text(gap if said else ""), *_joined(made, gap)])

    def _results(self, bodies: Sequence[list[Piece]], calls: Sequence[str]) -> list[Piece]:
        """Return what tools gave back, in the order of their calls; the texts are the caller's."""
        form = self._tool_form()
        made = itertools.chain(calls, itertools.repeat(calls[-1] if calls else None))
        results = [self._filled(form.result, *form.named_by(next(made)), body) for body in bodies]
        return _joined(results, "" if form.apart else "\n")

    def _filled(self, form: str, *bodies: str | list[Piece]) -> list[Piece]:
        """Return a form's own words, with texts that stay text, or pieces, in its places."""
        pieces, *rest = map(self._literal, form.split("{}"))
        for body, behind in zip(bodies, rest, strict=True):
            pieces = [*pieces, *([Text(body)] if isinstance(body, str) else body), *behind]
        return pieces

    def _tool_form(self) -> ToolForm:
        if self.tools is None:
            raise InvalidRequest(f"The template {self.name} has no form for tools: leave out tools, calls and results.")
        return self.tools

    def _thinking_text(self) -> str:
        if self.thinking is None:
            raise InvalidRequest(
                f"The template {self.name} has no thinking mode, which InternVL3.5 on Qwen3 has: leave it off."
            )
        return self.thinking

    def _parts_of(self, number: int, turn: _Turn) -> list[Part]:
        if turn.whole:
            return [Part("body", number, turn.role, turn.body)]
        form = self.turns.get(turn.role, self.any_turn)
        before, after = map(self._literal, form.replace("{role}", turn.role).split("{}"))
        return [
            Part("header", number, turn.role, before),
            Part("body", number, turn.role, turn.body),
            Part("closing", number, turn.role, after),
        ]

    def _literal(self, text: str) -> list[Piece]:
        """Return template text cut at the special tokens it names."""
        pieces: list[Piece] = []
        position = 0
        for match in self.special.finditer(text):
            pieces += [Text(text[position : match.start()]), Special(match.group())]
            position = match.end()
        return [*pieces, Text(text[position:])]


def _joined(lines: Sequence[list[Piece]], gap: str) -> list[Piece]:
    return [piece for number, line in enumerate(lines) for piece in (Text(gap if number else ""), *line)]


def _chatml(
    name: str, system: str, after_turn: str = "", stop: tuple[str, ...] = ("<|im_end|>",), **thinking: Any
) -> Template:
    form = "<|im_start|>{role}\n{}<|im_end|>" + after_turn
    turns, opening = {role: form.replace("{role}", role) for role in ROLES}, "<|im_start|>assistant\n"
    return Template(name, system, turns, opening, stop, tools=TOOL_FORMS["hermes"], any_turn=form, **thinking)


_PHI3 = Template(
    "phi3-chat",
    SYSTEM_INTERNVL2,
    turns={role: f"<|{role}|>\n{{}}<|end|>" for role in ROLES},
    opening="<|assistant|>\n",
    stop_tokens=("<|end|>",),
)
# Of DeepSeek-R1-Distill-Qwen-32B, the language model of Skywork-R1V; the start token goes before.
_DEEPSEEK_R1 = Template(
    "deepseek-r1",
    "",
    turns={"system": "{}", "user": "<｜User｜>{}", "assistant": "<｜Assistant｜>{}<｜end▁of▁sentence｜>"},
    opening="<｜Assistant｜>",
    stop_tokens=("<｜end▁of▁sentence｜>", "<|endoftext|>"),
    thinking="",
    thinks=True,
    think_opening="<think>\n",
    special=re.compile(r"<｜[^｜<>]+｜>"),
)
_GPT_OSS = Template(
    "internvl3_5_gpt_oss",
    SYSTEM_GPT_OSS,
    turns={
        "system": "<|start|>system<|message|>{}<|end|>",
        "user": "<|start|>user<|message|>{}<|end|>",
        "assistant": "<|start|>assistant<|channel|>final<|message|>{}<|end|>",
    },
    opening="<|start|>assistant",
    stop_tokens=("<|return|>", "<|call|>"),
    header=Header(starts=("<|start|>", "<|channel|>"), end="<|message|>"),
    tools=TOOL_FORMS["openai"],
)
TEMPLATES = {
    template.name: template
    for template in (
        _chatml("Hermes-2", SYSTEM_INTERNVL2, stop=("<|im_end|>", "<|endoftext|>")),
        _chatml("internlm2-chat", SYSTEM_INTERNVL2),
        _PHI3,
        _chatml("internvl2_5", SYSTEM_INTERNVL2_5, after_turn="\n", thinking=SYSTEM_THINKING),
        _GPT_OSS,
        _chatml("internlm2-chat-v1-5", SYSTEM_INTERNVL1_5),
        replace(_PHI3, name="phi3-chat-v1-5", system=SYSTEM_INTERNVL1_5_PHI3),
        _chatml("qianfan-ocr", "", after_turn="\n", thinking="", think_opening="<think>"),
        _chatml("intern-s1", "", after_turn="\n", thinking=SYSTEM_INTERN_S1, think_opening="<think>", thinks=True),
        _DEEPSEEK_R1,
    )
}
