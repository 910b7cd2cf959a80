"""Options of evaluations: what is asked and what is kept, under lm_eval's names. Nothing heavy is loaded here."""

from __future__ import annotations

import ast
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tilewise.errors import InvalidConfig
from tilewise.option import option, read_object, word


def task_names(text: str) -> tuple[str, ...]:
    """Read names that are separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither auto nor a number") from None


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number above 0")
    return int(text)


def keywords(text: str) -> dict[str, Any]:
    """Read JSON, or `name=value,name=value` with values as Python writes them; any other value is a text."""
    if text.lstrip().startswith("{"):
        return read_object(text)
    pairs = (item.partition("=") for item in text.split(","))
    return {name.strip(): _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Options that decide how tasks are asked; each has lm_eval's name and meaning, where lm_eval has it."""

    GROUP: ClassVar = "tasks"
    limit: float | None = option(None, "rows a task, or below 1 a share of them", short="-L", metavar="N")
    num_fewshot: int | None = option(None, "examples in front of each question")
    apply_chat_template: str | bool = option(False, "as a conversation", read=str, bare=True, metavar="NAME")
    system_instruction: str | None = option(None, "system message in place of the built-in one")
    fewshot_as_multiturn: bool = option(True, "examples are turns")
    gen_kwargs: dict[str, Any] | None = option(
        None, "over those of the tasks: temperature=0.8,do_sample=True", read=keywords, metavar="K=V[,K=V]"
    )
    include_path: Path | None = option(None, "folder with tasks of your own", metavar="DIR")
    data_dir: Path | None = option(None, "folder of data sets by hub name, as DIR/MMMU/MMMU", metavar="DIR")
    batch_size: int | str = option("auto", "questions at once", read=batch_size)
    max_gen_toks: int = option(256, "longest answer of tasks that name none")
    max_images: int | None = option(None, "pictures a question; more are left out and counted")
    enable_thinking: bool = option(False, "let the model reason first (InternVL3.5)")
    seed: int = option(1234, "of examples and of draws")

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit > 0:
            raise InvalidConfig(
                f"limit must be above 0, got {self.limit}: a count of rows, or below 1 a share of them."
            )
        if self.batch_size != "auto" and not (isinstance(self.batch_size, int) and self.batch_size > 0):
            raise InvalidConfig(f"batch_size must be auto or a whole number above 0, got {self.batch_size!r}.")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The tasks of one run, and where its results go."""

    GROUP: ClassVar = "run"
    tasks: tuple[str, ...] = option(
        MISSING, "names, patterns such as mmmu_val_*, YAML files", read=task_names, metavar="T[,T]"
    )
    output_path: Path | None = option(None, "folder for results, samples and answers", metavar="DIR")
    log_samples: bool = option(True, "write every row")
    predict_only: bool = option(False, "answers alone, without metrics")
    resume_dir: Path | None = option(None, "where answers are kept (default: --output-path)", metavar="DIR")
    mmmu_json: Path | None = option(None, "accuracy by subject of mmmu_val", metavar="FILE")

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InvalidConfig("tasks is empty: name at least one, such as tilewise_demo.")

    @property
    def store(self) -> Path | None:
        """Folder in which answers are kept as they come; None = they are not kept."""
        return self.resume_dir or self.output_path


@dataclass(frozen=True, kw_only=True)
class SpotOptions:
    GROUP: ClassVar = "spot"
    image: tuple[str, ...] = option((), "a picture; one or two of them", repeated=True, metavar="FILE")
    max_tokens: int = option(256, "longest answer")
    json: Path | None = option(None, "write questions, answers and verdicts", metavar="FILE")
    log: Path | None = option(None, "write them as text, a line each as they come", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    GROUP: ClassVar = "comparison"
    first: str = word("a result, or an engine if --tasks is given", "A")
    second: str = word("the other one", "B")
    tasks: tuple[str, ...] = option((), "run both engines on these first", read=task_names, metavar="T[,T]")
    output_path: Path | None = option(None, "folder for both runs, as DIR/a and DIR/b", metavar="DIR")
    json: Path | None = option(None, "write the comparison", metavar="FILE")
    plot: Path | None = option(None, "draw it (needs tilewise[plot])", metavar="FILE.png")


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions:
    GROUP: ClassVar = "divergence"
    first: str = word("the engine that answers, such as the model in bfloat16", "A")
    second: str = word("the other one, such as a quantised file of it", "B")
    prompts: Path | None = option(None, 'lines of {"prompt": TEXT, "images": [FILE, ...]}', metavar="FILE")
    max_tokens: int = option(32, "longest answer", read=positive)
    top: int = option(128, "likeliest tokens compared", read=positive)
    json: Path | None = option(None, "write the figures of every prompt", metavar="FILE")
    plot: Path | None = option(None, "draw them (needs tilewise[plot])", metavar="FILE.png")
