"""A conversation as something to keep, or to run again: Markdown, curl, Python's openai, and Tilewise's `LLM`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from tilewise.outputs.boxes import without_marks
from tilewise.ui.conversation import ChatConversation, ChatSettings, is_video, media_type

_SENT = ("temperature", "top_p", "max_tokens", "seed")
"""Fields that `SamplingParams` has, too."""
_PLACE = re.compile(r'"\\u0000(.*?)\\u0000"')
"""A name in JSON that a program is to read as code."""


def as_markdown(conversation: ChatConversation) -> str:
    """Return the conversation as a document; pictures are named, not contained."""
    lines = []
    for exchange in conversation.exchanges:
        lines += [f"![]({Path(file).name})" for file in exchange.files]
        lines += [f"**You:** {exchange.question}", f"**Model:** {without_marks(exchange.answer)}"]
        lines += [f"*{exchange.problem}*"] * bool(exchange.problem)
    return "\n\n".join(lines) + "\n"


def as_curl(conversation: ChatConversation, settings: ChatSettings, url: str) -> str:
    """Return shell commands that send the last question with all before it."""
    names = _names(conversation)
    reads = [f"{name}=$(base64 -w0 {shlex.quote(Path(file).name)})" for file, name in names.items()]
    messages = conversation.messages(
        settings, lambda file: _url_part(file, f"data:{media_type(file)};base64,\0{names[file]}\0")
    )
    body = json.dumps({**settings.fields, "messages": messages}, indent=2, ensure_ascii=False)
    body = body.replace("\\", "\\\\").replace("$", "\\$").replace("`", "\\`")
    body = re.sub(r"\\\\u0000(\w+)\\\\u0000", r"$\1", body)
    return "\n".join([
        *reads,
        f"curl {url}/chat/completions -H 'Content-Type: application/json' --data-binary @- <<END", body, "END",
    ])  # fmt: skip


def as_openai(conversation: ChatConversation, settings: ChatSettings, url: str) -> str:
    """Return a Python program that asks the same by the openai package."""
    head = [
        "import base64", "", "from openai import OpenAI", "", "",
        "def data_url(path, kind):", '    data = base64.b64encode(open(path, "rb").read()).decode()',
        '    return f"data:{kind};base64,{data}"',
        "", "",
    ]  # fmt: skip
    messages = conversation.messages(
        settings, lambda file: _url_part(file, f"\0data_url({Path(file).name!r}, {media_type(file)!r})\0")
    )
    own = {name: value for name, value in settings.fields.items() if name in (*_SENT, "model")}
    extra = {name: value for name, value in settings.fields.items() if name not in own}
    arguments = [f"    {name}={value!r}," for name, value in own.items()]
    if extra:
        arguments.append(f"    extra_body={extra!r},")
    return "\n".join([
        *(head if any(exchange.files for exchange in conversation.exchanges) else head[2:4]),
        f'client = OpenAI(base_url="{url}", api_key="-")',
        "answer = client.chat.completions.create(",
        *arguments,
        f"    messages={_literal(messages)},",
        ")",
        "print(answer.choices[0].message.content)",
    ])  # fmt: skip


def as_llm(conversation: ChatConversation, settings: ChatSettings, model: str) -> str:
    """Return a Python program that asks the same of an engine in its own process."""

    def part(file: str) -> dict[str, Any]:
        if is_video(file):
            return _url_part(file, f"\0Path({Path(file).name!r}).absolute().as_uri()\0")
        return {"type": "image_pil", "image_pil": f"\0Image.open({Path(file).name!r})\0"}

    messages = conversation.messages(settings, part)
    sampling = {name: value for name, value in settings.fields.items() if name in (*_SENT, "skip_special_tokens")}
    given = ", ".join(f"{name}={value!r}" for name, value in sampling.items())
    options = "".join(
        f", {name}={settings.fields[name]!r}" for name in ("mm_processor_kwargs", "chat_template_kwargs")
        if name in settings.fields
    )  # fmt: skip
    files = [file for exchange in conversation.exchanges for file in exchange.files]
    videos = ", allowed_local_media_path=str(Path.cwd())" if any(map(is_video, files)) else ""
    return "\n".join([
        *(["from pathlib import Path", ""] if videos else []),
        *(["from PIL import Image", ""] if not all(map(is_video, files)) else []),
        "from tilewise import LLM, SamplingParams", "",
        f"llm = LLM({model!r}{videos})",
        f"messages = {_literal(messages)}",
        f"output = llm.chat(messages, SamplingParams({given}){options})[0]",
        "print(output.outputs[0].text)",
    ])  # fmt: skip


def _url_part(file: str, url: str) -> dict[str, Any]:
    kind = "video_url" if is_video(file) else "image_url"
    return {"type": kind, kind: {"url": url}}


def _literal(value: Any) -> str:
    """Return JSON data as Python, in which names between NUL characters are code."""
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return _PLACE.sub(lambda match: json.loads(f'"{match[1]}"'), text)


def _names(conversation: ChatConversation) -> dict[str, str]:
    """Return a shell variable for each file."""
    files = dict.fromkeys(file for exchange in conversation.exchanges for file in exchange.files)
    return {file: f"MEDIA_{number}" for number, file in enumerate(files, 1)}
