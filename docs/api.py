"""Writes docs/api.md from the fields that request bodies are checked against.

`make compatibility` runs this; a test holds the page against the tables.
"""

from __future__ import annotations

from pathlib import Path

from docs.compatibility import section

from tilewise.server.assemble import ROUTERS
from tilewise.server.bodies import BODIES, EncodeBody
from tilewise.server.body import Body, Field, fields_of
from tilewise.server.openapi import api_routes

PAGE = Path(__file__).parent / "api.md"
INTRODUCTION = """\
# The HTTP API, field by field

Written by `make compatibility`.

Bodies are OpenAI's, with vLLM's further fields. What changes an answer works, or is refused by name with a 400 that
says why and what to send instead. What does not change one is taken and named: in the answer's header
`x-tilewise-ignored: chat_id, messages.id`, once in the log with the reason, and in the counter
`tilewise:ignored_fields_total`. That holds for fields that are listed here without effect and for those that nobody
knows, also inside of messages, parts and tools. One that is nearly a known one is refused with the name that was meant,
so a misspelt `max_tokns` does not pass; at most 64 unknown names come with a request. `--strict-fields` refuses all
unknown ones.

A null counts as absent, everywhere. Numbers and switches may be written as pydantic's lax mode reads them, as in vLLM:
`10.0` and `"10"` for 10, `"0.5"` for 0.5, `"true"` for true.
"""
PARTS = """\
## Messages

| message | what becomes of it |
|---|---|
| `system`, `developer` | the same; only a first one takes the place of the built-in text |
| several of them, anywhere | ChatML: where they stand; Phi-3, GPT-OSS: joined at the start by blank lines |
| another role | ChatML: any name of letters and digits; refused by the two others |
| pictures and videos | ChatML: in messages of every role, results of tools included; else in the user's alone |
| `prefix: true` or `partial: true` in a last message of the assistant | the answer goes on with it |
| `reasoning`, `name`, `refusal` ... of earlier answers | no part of the prompt, as in the training; named |

A text may say `<image>` or `<video>` (or LMDeploy's `<IMAGE_TOKEN>`) where a picture or video of its message stands: as
often as there are such media. In a message without pictures these are text, and so is `<IMG_CONTEXT>`. Without markers
the order of parts is what the model was trained with. `-hf` checkpoints loop over parts: texts as they are, a line
break behind each picture. Other checkpoints have pictures, then videos, then the texts, a line each;
`--interleave-mm-strings`, or the field `interleave_mm_strings`, keeps their order, a line for each part.

Thinking (`reasoning_effort`, `enable_thinking`) has an effect on models whose vocabulary has `<think>`: InternVL3.5 on
Qwen3. The text that asks for it is a system text, so a system message of the request takes its place. A form of answers
(`response_format`, `structured_outputs`, a call that is forced) holds from the first token on; where thinking is asked
for, the answer begins with `<think>`, and the form holds behind `</think>`.

## Parts of a message

| part | what it is |
|---|---|
| `{"type": "text", "text": "..."}` | text |
| `{"type": "image_url", "image_url": {"url": "..."}}` | a picture: `https:`, `data:`, `file:` in the folder allowed |
| `{"type": "video_url", "video_url": {"url": "..."}}` | the same for videos; frames are taken evenly, one tile each |
| `{"type": "image_url", "image_url": {"url": "...", "max_dynamic_patch": 1}}` | how this picture is cut, alone |
| `{"type": "image_url", "image_url": {"url": "...", "detail": "low"}}` | named, unless `--detail-tiles` says more |
| `{"image_url": "..."}` | the short form |
| `{"type": "image_url", "image_url": {"url": "..."}, "uuid": "..."}` | a name for it: later the `uuid` comes alone |
| `{"type": "image_embeds", "image_embeds": "<base64>"}` | encoded already; see [encode-server.md](encode-server.md) |
| audio, files, embeddings of videos | refused by name |
"""


def page() -> str:
    routes = section("## Routes", ("route", "methods", "about"), [*_routes()])
    return "\n".join([INTRODUCTION, routes, *map(_table, (*BODIES, EncodeBody)), PARTS])


def _routes() -> list[tuple[str, str, str]]:
    found = []
    for route in api_routes(ROUTERS):
        methods, about = ", ".join(sorted(route.methods or ())), (route.endpoint.__doc__ or "").strip()
        found.append((f"`{route.path}`", methods, about))
    return found


def _table(body: type[Body]) -> str:
    rows = [(f"`{field.name}`", _effect(field), field.note) for field in fields_of(body).values()]
    return section(f"## `{body.route}`", ("field", "effect", "about"), rows)


def _effect(field: Field) -> str:
    taken = ", ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in field.harmless)
    return f"{field.effect}, but for {taken}" if taken and field.effect == "refused" else field.effect


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
