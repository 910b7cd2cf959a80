"""`tilewise inspect MODEL`: the prompt, its tokens and its tiles, before anything is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewise.cli.ask import VIDEOS, media_part, question_part
from tilewise.cli.options import add_engine_flags, engine_options
from tilewise.errors import InvalidRequest

if TYPE_CHECKING:
    from tilewise.config import EngineConfig
    from tilewise.inputs.inspection import Conversation, Inspection
    from tilewise.resize import Size

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
_EXAMPLE_SIZE = (1024, 768)
_FLAGS = (
    *("model", "revision", "hub", "download_dir", "mmproj"),
    *("mm_processor_kwargs", "tile_budget", "exif_orientation", "max_image_pixels", "num_frames", "fps"),
    *("allowed_local_media_path", "allowed_media_domains"),
)
EXAMPLES = """\
examples:
  tilewise inspect OpenGVLab/InternVL3-8B
      what the model is asked about a picture of 1024x768, and whether its Jinja file would ask the same
  tilewise inspect ./InternVL3-1B sign.jpg "What does the sign say?"
      the same for your own picture and question; `ask` takes the same arguments
  tilewise inspect ./InternVL3-1B --image-size 2480x3508 --image-size 640x480 "Compare."
      two pictures of which only the sizes are known
  tilewise inspect ./InternVL3-1B --image-size 2480x3508 --mm-processor-kwargs max_dynamic_patch=24
      how many tokens more tiles cost
  tilewise inspect ./InternVL3-1B --text-only --system "Answer in one word." "Who are you?" --ids
      a prompt without pictures, and its ids
  tilewise inspect ./InternVL3-1B --strict > /dev/null || echo "its Jinja file differs"
      for scripts; --json prints everything as JSON
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "inspect",
        usage="tilewise inspect [OPTION ...] [MODEL] [PICTURE ...] [QUESTION]",
        description="Show template, ids, tiling and the prompt that Tilewise builds for a model, with its tokens by "
        "part, and whether the checkpoint's own Jinja template agrees. No weight is read.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL PICTURE QUESTION",
        help="the model (default: demo; also --model), pictures or videos, and the question, each may be left out",
    )
    parser.add_argument(
        "--image-size",
        type=_size,
        action="append",
        metavar="WxH",
        help="a picture of this size in place of a file; may be repeated (default: 1024x768)",
    )
    parser.add_argument("--text-only", action="store_true", help="no picture in the example")
    parser.add_argument("--system", metavar="TEXT", help="system message in place of the built-in one")
    parser.add_argument("--thinking", action="store_true", help="the prompt that asks to reason first (InternVL3.5)")
    parser.add_argument("--ids", action="store_true", help="print the prompt's ids too, rows of pictures as a count")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a Jinja template of the model differs")
    add_engine_flags(parser, only=_FLAGS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.config import EngineConfig

    _take_words(options)
    config = EngineConfig.of(**engine_options(options))
    inspection = _inspect(options, config)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the system texts are Chinese, whatever the locale
    if options.json:
        found = {**dataclasses.asdict(inspection), "differs": inspection.differs}
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        from tilewise.cli.inspection import print_inspection

        print_inspection(inspection, options.ids)
    return 1 if options.strict and inspection.differs else 0


def _inspect(options: argparse.Namespace, config: EngineConfig) -> Inspection:
    from tilewise.inputs.inspection import inspect_checkpoint
    from tilewise.inputs.model_inputs import ModelInputs

    conversation = _conversation(options, config)
    return inspect_checkpoint(ModelInputs.of(config), conversation)


def _take_words(options: argparse.Namespace) -> None:
    """Tell model, media and question apart: the model comes first, the question last and looks like no file."""
    words = list(options.words)
    if "model" not in options.engine_values and words and not _is_media(words[0]):
        options.engine_values["model"] = words.pop(0)
    question = words.pop() if words and not _is_media(words[-1]) else None
    if words and (options.image_size or options.text_only):
        raise InvalidRequest(f"{words[0]} came with --image-size or --text-only: give pictures or one of these.")
    if options.image_size and options.text_only:
        raise InvalidRequest("--image-size and --text-only exclude each other: give one of them.")
    options.media = words
    options.sizes = [] if words or options.text_only else options.image_size or [_EXAMPLE_SIZE]
    pictures = len(options.media) + len(options.sizes)
    asked = "Who are you?" if not pictures else "What is in this picture?" if pictures == 1 else "What has changed?"
    options.question = asked if question is None else question


def _is_media(word: str) -> bool:
    name = word.lower()
    return (
        "://" in word or name.endswith((*_PICTURES, *VIDEOS)) or (Path(word).is_file() and not name.endswith(".gguf"))
    )


def _conversation(options: argparse.Namespace, config: EngineConfig) -> Conversation:
    from tilewise.inputs.inspection import Conversation
    from tilewise.inputs.pieces import Message

    system = [] if options.system is None else [Message("system", options.system)]
    if options.media:
        message, media = _with_files(options, config)
    else:
        numbered = argparse.Namespace(question=options.question, media=[""] * len(options.sizes))
        message = Message("user", question_part(numbered)["text"], images=len(options.sizes))
        media = options.sizes
    return Conversation([*system, message], media, options.thinking or None)


def _with_files(options: argparse.Namespace, config: EngineConfig) -> tuple[Any, list[Size | list[Size]]]:
    """Return the message about real files, opened as `ask` opens them, and the sizes of their pictures and frames."""
    from PIL import Image

    from tilewise.entrypoints.setup import media_reader
    from tilewise.inputs.media.images import to_rgb
    from tilewise.inputs.media.tiling import EncodedPicture, LimitedPicture
    from tilewise.inputs.messages import read_messages

    parts = [*[media_part(source, config) for source in options.media], question_part(options)]
    messages, media = read_messages([{"role": "user", "content": parts}], media_reader(config))

    def size_of(picture: Image.Image | LimitedPicture | EncodedPicture) -> Size:
        assert not isinstance(picture, EncodedPicture), "files are opened"
        image = picture.image if isinstance(picture, LimitedPicture) else picture
        return to_rgb(image, config.exif_orientation).size

    sizes = [[size_of(frame) for frame in item] if isinstance(item, list) else size_of(item) for item in media]
    return messages[0], sizes


def _size(text: str) -> Size:
    found = re.fullmatch(r"([1-9]\d{0,6})[x×]([1-9]\d{0,6})", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1024x768")
    return int(found[1]), int(found[2])
