"""`tilewise ask`, `generate` and `demo`: questions to a model in this process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb
from tilewise.config import EngineConfig
from tilewise.errors import InvalidRequest
from tilewise.inputs.pieces import numbered
from tilewise.option import option, word
from tilewise.sampling_params import SamplingParams
from tilewise.timing import Timing
from tilewise.types import RequestOutput

if TYPE_CHECKING:
    from tilewise.entrypoints.llm import LLM

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
_DEMO = Path(__file__).parent.parent / "demo"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    GROUP: ClassVar = "answer"
    max_tokens: int | None = option(None, "longest answer (default: 512; of `generate` 128)")
    temperature: float = option(0.0, "0 = always the likeliest token")
    top_p: float = option(1.0, "draw from the likeliest tokens of this total")
    top_k: int = option(0, "draw from this many likeliest tokens; 0 = all")
    repetition_penalty: float = option(1.0, "above 1 discourages repeating")
    seed: int | None = option(None, "makes drawing repeatable")
    stop: tuple[str, ...] = option((), "end before this text; may be repeated", repeated=True)
    special_tokens: bool = option(False, "show special tokens, such as <ref> and <box> of boxes")

    def sampling(self, max_tokens: int) -> SamplingParams:
        """Return them for the engine; `max_tokens` is the default of that."""
        return SamplingParams(
            max_tokens=max_tokens if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=list(self.stop),
            skip_special_tokens=not self.special_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    GROUP: ClassVar = "question"
    media: tuple[str, ...] = word("pictures or videos: files or http(s) URLs", "PICTURE", ())
    question: str = word("the question; <image> in it says where pictures stand", "QUESTION")
    system: str | None = option(None, "system message in place of the built-in one")
    thinking: bool = option(False, "reason first (InternVL3.5)")
    stats: bool = option(False, "print tokens and times to standard error")
    draw: Path | None = option(
        None,
        "write the last picture with the boxes that the answer names, as PNG, JPEG or WebP",
        read=Path,
        metavar="FILE",
    )


def ask(line: CommandLine) -> int:
    from tilewise.entrypoints.llm import LLM

    options, sampling = line.take(AskOptions), line.take(AnswerOptions).sampling(512)
    # The question and local pictures first: a mistake should not cost a model's loading time.
    given = engine_options(line)
    config = EngineConfig.of(**given)
    if not options.media and Path(options.question).is_file():
        raise InvalidRequest(f"{options.question} is a file, and no question: put one behind it, in quotes.")
    parts = [media_part(source, config) for source in options.media]
    drawn = None if options.draw is None else BoxDrawing.of(parts, options.draw)
    if drawn is not None:
        sampling = sampling.with_(skip_special_tokens=False)  # <ref> and <box> are such
    asked = [*parts, question_part(options.question, parts)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    thinking = {"enable_thinking": True} if options.thinking else None
    whole = None
    with LLM(**given) as llm:
        for text, output in llm.stream_chat(messages, sampling, chat_template_kwargs=thinking):
            print(text, end="", flush=True)
            whole = output
    print()
    if whole is not None and not whole.outputs[0].text:
        print("(The model ended at once: it had nothing to say.)", file=sys.stderr)
    if whole is not None and drawn is not None:
        drawn.write(whole.outputs[0].text)
    if options.stats and whole is not None:
        print_stats(whole)
    return 0


@dataclass(frozen=True)
class BoxDrawing:
    """A picture of a question, and the file that it is written to with the boxes of the answer."""

    picture: Any
    file: Path

    @classmethod
    def of(cls, parts: Sequence[dict[str, Any]], file: Path) -> BoxDrawing:
        """Take the last picture of a question. Raises InvalidRequest without one that is a file here."""
        from PIL import Image

        pictures = [part["image_pil"] for part in parts if "image_pil" in part]
        if not pictures:
            raise InvalidRequest(f"--draw {file}: boxes are drawn over a picture: give one that is a file here.")
        if file.suffix.lower() not in Image.registered_extensions():
            raise InvalidRequest(f"--draw {file}: {file.suffix or 'no ending'} is no kind of picture: take .png.")
        if not file.parent.is_dir():
            raise InvalidRequest(f"--draw {file}: there is no folder {file.parent}.")
        return cls(pictures[-1], file)

    def write(self, answer: str) -> None:
        """Draw the boxes of an answer. Raises InvalidRequest if the file cannot be written."""
        from tilewise.inputs.media.images import to_rgb
        from tilewise.outputs.boxes import draw_boxes, read_boxes

        boxes = read_boxes(answer)
        try:
            draw_boxes(to_rgb(self.picture), boxes).save(self.file)
        except OSError as error:
            raise InvalidRequest(f"--draw {self.file} cannot be written: {error}.") from None
        print(f"{len(boxes)} boxes drawn in {self.file}", file=sys.stderr)


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
    from tilewise.inputs.media.images import Opening, open_image
    from tilewise.inputs.media.video import FrameChoice, read_video

    opening = Opening.of(config)
    if "://" in source:
        # Without what is behind a ?, which is often a key. A GIF may be either, and most are pictures.
        name = urlsplit(source).path.lower()
        kind = "video" if name.endswith(VIDEOS) and not name.endswith(".gif") else "image"
        return {"type": f"{kind}_url", f"{kind}_url": source}
    if not Path(source).exists():
        raise InvalidRequest(f"{source}: no such file. The question is the last word of the line: put it in quotes.")
    if not _is_video(source):
        return {"type": "image_pil", "image_pil": open_image(source, opening.limits)}
    choice = FrameChoice(config.num_frames, config.fps)
    return {"type": "video_frames", "video_frames": read_video(source, choice, opening)}


def _is_video(path: str) -> bool:
    """Tell by what is in a file whether it is a video: of GIFs, those that move."""
    from PIL import Image

    from tilewise.inputs.media.file_kind import kind_of

    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
        kind = kind_of(head)
        if head.startswith(b"GIF8"):
            with Image.open(path) as image:
                return bool(getattr(image, "is_animated", False))
    except OSError:  # said when it is opened as what its name says
        kind = None
    if kind is None or kind.family == "other":
        return path.lower().endswith(VIDEOS)
    return kind.family == "video"


def question_part(question: str, media: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the question about these parts of pictures and videos as a content part.

    Several pictures are numbered, as the model cards do; a question with its own markers stays as it is.
    """
    if not question.strip():
        raise InvalidRequest("The question is empty.")
    videos = any(part["type"].startswith("video") for part in media)
    return {"type": "text", "text": numbered(question, 0 if videos else len(media))}


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    GROUP: ClassVar = "question"
    prompt: str = word("the prompt; - reads it from standard input", "PROMPT")
    image: tuple[Path, ...] = option((), "picture for the next <image>", repeated=True, metavar="FILE")


def generate(line: CommandLine) -> int:
    from tilewise.entrypoints.llm import LLM

    options, sampling = line.take(GenerateOptions), line.take(AnswerOptions).sampling(128)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    with LLM(**engine_options(line)) as llm:
        outputs = llm.generate({"prompt": prompt, "multi_modal_data": {"image": list(options.image)}}, sampling)
    print(outputs[0].outputs[0].text)
    return 0


def demo(line: CommandLine) -> int:
    from rich.console import Console
    from rich.table import Table

    from tilewise.entrypoints.llm import LLM

    console = Console(width=120)
    started = time.perf_counter()
    llm = LLM(**engine_options(line))
    console.print(f"Model {llm.config.model} loaded in {time.perf_counter() - started:.1f} s")
    console.print(f"Pictures in {_DEMO / 'pictures'}", soft_wrap=True)
    table = Table()
    for title in ("task", "pictures", "question", "answer", "expected", "seconds"):
        table.add_column(title, overflow="fold")  # nothing is cut off
    wrong = 0
    for item in json.loads((_DEMO / "questions.json").read_text(encoding="utf-8")):
        pictures = "\n".join(item["pictures"])
        for turn, answer, seconds in answer_turns(llm, item):
            wrong += answer != turn["answer"]
            table.add_row(item["task"], pictures, turn["question"], answer, turn["answer"], f"{seconds:.2f}")
            pictures = "(same)"
    console.print(table)
    console.print("All answers are right." if not wrong else f"{wrong} answers are wrong.")
    return 1 if wrong else 0


def answer_turns(llm: LLM, item: dict[str, Any]) -> Iterator[tuple[dict[str, str], str, float]]:
    """Ask the turns of one conversation, each behind the answers so far; yield each with its answer and seconds."""
    sampling = SamplingParams(temperature=0, max_tokens=64, skip_special_tokens=False)
    messages: list[dict[str, Any]] = []
    for turn in item["turns"]:
        pictures = [] if messages else [_DEMO / "pictures" / name for name in item["pictures"]]
        messages.append(user_message(turn["question"], pictures))
        started = time.perf_counter()
        answer = llm.chat(messages, sampling)[0].outputs[0].text
        yield turn, answer, time.perf_counter() - started
        messages.append({"role": "assistant", "content": answer})


def user_message(question: str, paths: list[Path]) -> dict[str, Any]:
    """Return a message with a question about pictures; several are numbered, as the model cards do."""
    from tilewise.inputs.media.images import open_image

    parts: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": open_image(path)} for path in paths]
    return {"role": "user", "content": [*parts, question_part(question, parts)]}


ASK = Verb(
    usage="tilewise ask [OPTION ...] [PICTURE ...] QUESTION",
    about="Ask a question about pictures or a video; the answer is printed as it is generated.",
    run=ask,
    options=(AskOptions, AnswerOptions),
    shared=engine_flags,
    examples="""\
examples:
  tilewise ask sign.jpg "What does the sign say?"
  tilewise ask before.png after.png "What has changed?" --model OpenGVLab/InternVL3-2B
  tilewise ask street.jpg "Find <ref>the bus</ref> and give its box." --draw out.png
  tilewise ask clip.mp4 "What happens here?" --num-frames 8
  tilewise ask "Who are you?" --model ./InternVL3-1B
""",
)
GENERATE = Verb(
    usage="tilewise generate [OPTION ...] PROMPT",
    about="Continue a raw prompt, in which special tokens are meant; no template is applied.",
    run=generate,
    options=(GenerateOptions, AnswerOptions),
    shared=engine_flags,
    examples="""\
examples:
  tilewise generate $'<|im_start|>user\\n<image>\\nWhat is this?<|im_end|>\\n<|im_start|>assistant\\n' --image a.jpg
  cat prompt.txt | tilewise generate -
""",
)
DEMO = Verb(
    usage="tilewise demo [OPTION ...]",
    about="Ask the demo model about its pictures: reading, colour and shape, counting, comparing two pictures, a "
    "follow-up turn, a Chinese question, and small print that only tiling makes legible. Exits 1 if an answer is "
    "wrong.",
    run=demo,
    shared=engine_flags,
)
