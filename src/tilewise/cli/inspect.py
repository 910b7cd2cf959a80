"""`tilewise inspect MODEL`: the prompt, its tokens and its tiles. No weight is read."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tilewise.cli.ask import VIDEOS, media_part, question_part
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb
from tilewise.errors import InvalidRequest
from tilewise.option import option, word

if TYPE_CHECKING:
    from tilewise.config import EngineConfig
    from tilewise.inputs.inspection import Conversation
    from tilewise.resize import Size

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
_EXAMPLE_SIZE = (1024, 768)
_USUAL_QUESTIONS = ("Who are you?", "What is in this picture?", "What has changed?")
"""Questions where none was given, about no picture, one, and several."""
_FLAGS = (
    *("model", "revision", "hub", "download_dir", "mmproj"),
    *("mm_processor_kwargs", "tile_budget", "exif_orientation", "max_image_pixels", "num_frames", "fps"),
    *("allowed_local_media_path", "allowed_media_domains"),
)


def _size(text: str) -> Size:
    found = re.fullmatch(r"([1-9]\d{0,6})[x×]([1-9]\d{0,6})", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is not a size such as 1024x768")
    return int(found[1]), int(found[2])


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    GROUP: ClassVar = "prompt"
    words: tuple[str, ...] = word(
        "the model (default: demo; also --model), pictures or videos, and the question, each may be left out",
        "MODEL PICTURE QUESTION",
        (),
    )
    image_size: tuple[tuple[int, int], ...] = option(
        (), "a picture of this size in place of a file; may be repeated (default: 1024x768)", read=_size,
        repeated=True, metavar="WxH"
    )  # fmt: skip
    text_only: bool = option(False, "no picture in the example")
    system: str | None = option(None, "system message in place of the built-in one")
    thinking: bool = option(False, "the prompt that asks to reason first (InternVL3.5)")
    ids: bool = option(False, "print the prompt's ids too, rows of pictures as a count", "output")
    json: bool = option(False, "print everything as JSON", "output")
    strict: bool = option(False, "exit with 1 when a Jinja template of the model differs", "output")


def inspect(line: CommandLine) -> int:
    from tilewise.config import EngineConfig
    from tilewise.inputs.inspection import inspect_checkpoint
    from tilewise.inputs.model_inputs import ModelInputs

    options = line.take(InspectOptions)
    words = list(options.words)
    if "model" not in line.values and words and not _is_media(words[0]):
        line.values["model"] = words.pop(0)
    config = EngineConfig.of(**engine_options(line))
    conversation = _conversation(options, words, config)
    inspection = inspect_checkpoint(ModelInputs.of(config), conversation)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the system texts are Chinese, whatever the locale
    if options.json:
        found = {**dataclasses.asdict(inspection), "differs": inspection.differs}
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        from tilewise.cli.inspection import print_inspection

        print_inspection(inspection, options.ids)
    return 1 if options.strict and inspection.differs else 0


def _conversation(options: InspectOptions, words: list[str], config: EngineConfig) -> Conversation:
    """Return a question about files, or about pictures of which only the sizes are known. Raises InvalidRequest.

    The question comes last in the words, and looks like no file.
    """
    from tilewise.inputs.inspection import Conversation
    from tilewise.inputs.pieces import Message

    question = words.pop() if words and not _is_media(words[-1]) else None
    if words and (options.image_size or options.text_only):
        raise InvalidRequest(f"{words[0]} came with --image-size or --text-only: give pictures or one of these.")
    if options.image_size and options.text_only:
        raise InvalidRequest("--image-size and --text-only exclude each other: give one of them.")
    sizes = [] if words or options.text_only else list(options.image_size or [_EXAMPLE_SIZE])
    if question is None:
        question = _USUAL_QUESTIONS[min(2, len(words) + len(sizes))]
    if words:
        message, media = _with_files(words, question, config)
    else:
        text = question_part(question, [{"type": "image_pil"}] * len(sizes))["text"]
        message, media = Message("user", text, images=len(sizes)), list(sizes)
    system = [] if options.system is None else [Message("system", options.system)]
    return Conversation([*system, message], media, options.thinking or None)


def _with_files(files: list[str], question: str, config: EngineConfig) -> tuple[Any, list[Size | list[Size]]]:
    """Return the message about files, opened as `ask` opens them, and the sizes of pictures and frames."""
    from PIL import Image

    from tilewise.entrypoints.setup import media_reader
    from tilewise.inputs.media.images import to_rgb
    from tilewise.inputs.media.tiling import LimitedPicture, Picture
    from tilewise.inputs.messages import read_messages

    shown = [media_part(source, config) for source in files]
    parts = [*shown, question_part(question, shown)]
    messages, media = read_messages([{"role": "user", "content": parts}], media_reader(config))

    def size_of(picture: Picture) -> Size:
        image = picture.image if isinstance(picture, LimitedPicture) else picture
        assert isinstance(image, Image.Image), "files are opened"
        return to_rgb(image, config.exif_orientation).size

    sizes = [[size_of(frame) for frame in item] if isinstance(item, list) else size_of(item) for item in media]
    return messages[0], sizes


def _is_media(word: str) -> bool:
    name = word.lower()
    return (
        "://" in word or name.endswith((*_PICTURES, *VIDEOS)) or (Path(word).is_file() and not name.endswith(".gguf"))
    )


INSPECT = Verb(
    usage="tilewise inspect [OPTION ...] [MODEL] [PICTURE ...] [QUESTION]",
    about="Show template, ids, tiling and the prompt that Tilewise builds for a model, with its tokens by part, and "
    "whether the checkpoint's own Jinja template agrees. No weight is read.",
    run=inspect,
    options=(InspectOptions,),
    shared=partial(engine_flags, _FLAGS),
    examples="""\
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
""",
)
