"""`tilewise ask` and `generate`: one question about pictures, or a raw prompt, answered as it is generated."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tilewise.cli.options import add_engine_flags, add_sampling_flags, engine_options, sampling_of
from tilewise.config import EngineConfig
from tilewise.errors import InvalidRequest
from tilewise.timing import Timing
from tilewise.types import RequestOutput

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
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
        usage="tilewise ask [OPTION ...] [PICTURE ...] QUESTION",
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
    from tilewise.entrypoints.llm import LLM

    # The question and local pictures first: a mistake should not cost a model's loading time.
    given = engine_options(options)
    config = EngineConfig.of(**given)
    parts = [media_part(source, config) for source in options.media]
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*parts, question_part(options)]}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    thinking = {"enable_thinking": True} if options.thinking else None
    whole = None
    with LLM(**given) as llm:
        for text, output in llm.stream_chat(messages, sampling_of(options), chat_template_kwargs=thinking):
            print(text, end="", flush=True)
            whole = output
    print()
    if options.stats and whole is not None:
        print_stats(whole)
    return 0


def print_stats(output: RequestOutput) -> None:
    usage, timing = output.usage, output.timing
    saved = f", {usage.image_tokens_saved} saved by the router" if usage.image_tokens_saved else ""
    print(
        f"{usage.prompt_tokens} prompt tokens ({usage.tiles} tiles, {usage.image_tokens} image tokens{saved}), "
        f"{usage.completion_tokens} answer tokens; first token after {timing.time_to_first_token:.2f} s, "
        f"all after {timing.total:.2f} s",
        file=sys.stderr,
    )
    print(time_split(timing), file=sys.stderr)


def time_split(timing: Timing) -> str:
    """Return one line that says where the time of a whole answer went."""
    inputs = timing.inputs
    parts = {
        "download": inputs.download,
        "decode media": inputs.decode,
        "preprocess": inputs.preprocess,
        "queue": timing.queue,
        "prefill": timing.prefill,
        "decode": timing.decode,
    }
    split = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in parts.items())
    return f"{split}; waiting for tiles {timing.encode:.3f} s of it"


def media_part(source: str, config: EngineConfig) -> dict[str, Any]:
    """Return a picture or video as a content part of a message.

    Local files are opened here; URLs are left to the engine, which guards what it fetches.
    """
    from tilewise.inputs.media.images import ImageLimits, open_image
    from tilewise.inputs.media.video import FrameChoice, read_video

    kind = "video" if source.lower().endswith(VIDEOS) else "image"
    if "://" in source:
        return {"type": f"{kind}_url", f"{kind}_url": source}
    if kind == "image":
        return {"type": "image_pil", "image_pil": open_image(source, ImageLimits.of(config))}
    choice = FrameChoice(config.num_frames, config.fps)
    return {"type": "video_frames", "video_frames": read_video(source, choice, upright=config.exif_orientation)}


def question_part(options: argparse.Namespace) -> dict[str, str]:
    """Return the question as a content part.

    Several pictures are numbered, as the model cards do; a question with its own markers stays as it is.
    """
    question, pictures = options.question, len(options.media)
    videos = sum(source.lower().endswith(VIDEOS) for source in options.media)
    if not question.strip():
        raise InvalidRequest("The question is empty.")
    if pictures > 1 and not videos and "<image>" not in question:
        question = "".join(f"Image-{number}: <image>\n" for number in range(1, pictures + 1)) + question
    return {"type": "text", "text": question}


GENERATE_EXAMPLES = """\
examples:
  tilewise generate $'<|im_start|>user\\n<image>\\nWhat is this?<|im_end|>\\n<|im_start|>assistant\\n' --image a.jpg
  cat prompt.txt | tilewise generate -
"""


def add_generate(verbs: Any) -> None:
    parser = verbs.add_parser(
        "generate",
        usage="tilewise generate [OPTION ...] PROMPT",
        description="Continue a raw prompt, in which special tokens are meant; no template is applied.",
        epilog=GENERATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from standard input")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="picture for the next <image>")
    add_sampling_flags(parser, max_tokens=128)
    add_engine_flags(parser)
    parser.set_defaults(run=generate)


def generate(options: argparse.Namespace) -> int:
    from tilewise.entrypoints.llm import LLM

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    media = {"image": [Path(name) for name in options.image]}
    with LLM(**engine_options(options)) as llm:
        outputs = llm.generate({"prompt": prompt, "multi_modal_data": media}, sampling_of(options))
    print(outputs[0].outputs[0].text)
    return 0
