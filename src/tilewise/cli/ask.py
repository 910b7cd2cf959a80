"""`tilewise ask PICTURE... "QUESTION"`: one question about pictures, answered as it is generated."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from tilewise.cli.options import add_engine_flags, add_sampling_flags, engine_options, sampling_of
from tilewise.errors import InvalidRequest

_VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
EXAMPLES = """\
examples:
  tilewise ask sign.jpg "What does the sign say?"
  tilewise ask before.png after.png "What has changed?" --model OpenGVLab/InternVL3-2B
  tilewise ask clip.mp4 "What happens here?" --num-frames 8
  tilewise ask "Who are you?" --model ./InternVL3-1B
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "ask",
        help="ask a question about pictures or a video",
        description="Ask a question about pictures or a video; the answer is printed as it is generated.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("media", nargs="*", metavar="PICTURE", help="pictures or videos: files or http(s) URLs")
    parser.add_argument("question", metavar="QUESTION", help="the question; <image> in it says where pictures stand")
    parser.add_argument("--system", metavar="TEXT", help="system message in place of the built-in one")
    parser.add_argument("--thinking", action="store_true", help="reason first (InternVL3.5)")
    parser.add_argument("--stats", action="store_true", help="print tokens and times to standard error")
    add_sampling_flags(parser, max_tokens=512)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.inputs.images import open_image
    from tilewise.llm import LLM

    # Local pictures first: a wrong path should not cost a model's loading time.
    parts = [_part(source, open_image) for source in options.media]
    llm = LLM(**engine_options(options))
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*parts, _question(options)]}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    thinking = {"enable_thinking": True} if options.thinking else None
    for text, output in llm.stream_chat(messages, sampling_of(options), chat_template_kwargs=thinking):
        print(text, end="", flush=True)
    print()
    if options.stats:
        print_stats(output)
    return 0


def print_stats(output: Any) -> None:
    usage, timing = output.usage, output.timing
    first, total = timing.first_token - timing.arrival, timing.finished - timing.arrival
    print(
        f"{usage.prompt_tokens} prompt tokens ({usage.tiles} tiles, {usage.image_tokens} image tokens), "
        f"{usage.completion_tokens} answer tokens; first token after {first:.2f} s, all after {total:.2f} s; "
        f"process has run {time.process_time():.1f} CPU seconds",
        file=sys.stderr,
    )


def _part(source: str, open_image: Any) -> dict[str, Any]:
    remote = source.startswith(("http://", "https://"))
    if source.lower().endswith(_VIDEOS):
        return {"type": "video_url", "video_url": source}
    if remote:
        return {"type": "image_url", "image_url": source}
    return {"type": "image_pil", "image_pil": open_image(source)}


def _question(options: argparse.Namespace) -> dict[str, str]:
    """Several pictures are numbered, as the model cards do; a question with its own markers stays as it is."""
    question, pictures = options.question, len(options.media)
    videos = sum(source.lower().endswith(_VIDEOS) for source in options.media)
    if not question.strip():
        raise InvalidRequest("The question is empty.")
    if pictures - videos > 1 and not videos and "<image>" not in question:
        question = "".join(f"Image-{number}: <image>\n" for number in range(1, pictures + 1)) + question
    return {"type": "text", "text": question}
