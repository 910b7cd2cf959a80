"""`tilewise eval run | spot | compare | divergence`: how often a model is right, and how alike two of them are."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tilewise.cli.flags.flag import word
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb, VerbGroup
from tilewise.option import option, read_object

if TYPE_CHECKING:
    from tilewise.evals.run import EvalOptions


def batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither auto nor a number") from None


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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number above 0")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The flags of lm_eval that decide what is asked."""

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

    def asked(self, tasks: str, engine: dict[str, Any], **more: Any) -> EvalOptions:
        """Return the options of an evaluation of these tasks, which are separated by commas."""
        from tilewise.evals.run import EvalOptions

        names = tuple(name.strip() for name in tasks.split(",") if name.strip())
        return EvalOptions(tasks=names, engine=engine, **vars(self), **more)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    GROUP: ClassVar = "run"
    tasks: str = option(dataclasses.MISSING, "names, patterns such as mmmu_val_*, YAML files", metavar="T[,T]")
    output_path: Path | None = option(None, "folder for results, samples and answers", metavar="DIR")
    log_samples: bool = option(True, "write every row")
    predict_only: bool = option(False, "answers alone, without metrics")
    resume_dir: Path | None = option(None, "where answers are kept (default: --output-path)", metavar="DIR")
    mmmu_json: Path | None = option(None, "accuracy by subject of mmmu_val", metavar="FILE")


def run_tasks(line: CommandLine) -> int:
    from rich.console import Console

    from tilewise.evals.results import QuestionCounts
    from tilewise.evals.run import evaluate, score_table

    options = vars(line.take(RunOptions))
    tasks = line.take(TaskOptions)
    results = evaluate(tasks.asked(options.pop("tasks"), engine_options(line), **options))
    console = Console(width=120)
    console.print(score_table(results))
    for sentence in QuestionCounts.from_json(results["config"]["tilewise"]).sentences():
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class SpotOptions:
    GROUP: ClassVar = "spot"
    image: tuple[str, ...] = option((), "a picture; one or two of them", repeated=True, metavar="FILE")
    max_tokens: int = option(256, "longest answer")
    json: Path | None = option(None, "write questions, answers and verdicts", metavar="FILE")
    log: Path | None = option(None, "write them as text, a line each as they come", metavar="FILE")


def run_spot(line: CommandLine) -> int:
    from tilewise.evals.spot import spot_check

    options = line.take(SpotOptions)
    return spot_check(engine_options(line), list(options.image), options.max_tokens, options.json, options.log)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    GROUP: ClassVar = "comparison"
    first: str = word("a result, or an engine if --tasks is given", "A")
    second: str = word("the other one", "B")
    tasks: str = option("", "run both engines on these first", metavar="T[,T]")
    output_path: Path | None = option(None, "folder for both runs, as DIR/a and DIR/b", metavar="DIR")
    json: Path | None = option(None, "write the comparison", metavar="FILE")
    plot: Path | None = option(None, "draw it (needs tilewise[plot])", metavar="FILE.png")


def run_compare(line: CommandLine) -> int:
    from tilewise.evals.comparison import compare_engines, compare_results

    options, tasks = line.take(CompareOptions), line.take(TaskOptions)
    if not options.tasks:
        return compare_results(options.first, options.second, options.json, options.plot)
    asked = tasks.asked(options.tasks, {}, output_path=options.output_path)
    return compare_engines(options.first, options.second, asked, options.json, options.plot)


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions:
    GROUP: ClassVar = "divergence"
    first: str = word("the engine that answers, such as the model in bfloat16", "A")
    second: str = word("the other one, such as a quantised file of it", "B")
    prompts: Path | None = option(None, 'lines of {"prompt": TEXT, "images": [FILE, ...]}', metavar="FILE")
    max_tokens: int = option(32, "longest answer", read=_positive)
    top: int = option(128, "likeliest tokens compared", read=_positive)
    json: Path | None = option(None, "write the figures of every prompt", metavar="FILE")
    plot: Path | None = option(None, "draw them (needs tilewise[plot])", metavar="FILE.png")


def run_divergence(line: CommandLine) -> int:
    from tilewise.evals.divergence import measure_divergence, read_prompts

    options = line.take(DivergenceOptions)
    prompts = read_prompts(options.prompts)
    return measure_divergence(
        options.first, options.second, prompts, options.max_tokens, options.top, options.json, options.plot
    )


RUN = Verb(
    usage="tilewise eval run --tasks T[,T] [OPTION ...]",
    about="Answer tasks of lm_eval. Flags have lm_eval's names; with --output-path or --resume-dir a run that was "
    "ended goes on where it was.",
    run=run_tasks,
    options=(RunOptions, TaskOptions),
    shared=engine_flags,
)
SPOT = Verb(
    usage="tilewise eval spot [OPTION ...]",
    about="Ask five questions, and judge by rule whether each was answered: not whether the answer is true. Exits 1 if "
    "one was not.",
    run=run_spot,
    options=(SpotOptions,),
    shared=engine_flags,
)
COMPARE = Verb(
    usage="tilewise eval compare A B [OPTION ...]",
    about="Compare two results (folders or results_*.json of a run), or two engines, each a model with options "
    "(demo,quantization=int8), which are run first.",
    run=run_compare,
    options=(CompareOptions, TaskOptions),
)
DIVERGENCE = Verb(
    usage="tilewise eval divergence A B [OPTION ...]",
    about="What a quantised file costs: engine A answers, and both say at each token what they find likely. Prints the "
    "mean KL divergence, how often the likeliest token is the same, and the prompts that are furthest apart. An engine "
    "is a model with options (demo,quantization=int8).",
    run=run_divergence,
    options=(DivergenceOptions,),
)
EVAL = VerbGroup(
    usage="tilewise eval WHAT ...",
    about="Evaluate a model. docs/evaluation.md explains it; lm_eval is an extra: tilewise[eval].",
    title="evaluations",
    verbs={
        "run": ("lm_eval's tasks, answered by this engine", RUN),
        "spot": ("five questions with verdicts: text, two descriptions, reasoning, Chinese", SPOT),
        "compare": ("two results, or two engines on the same tasks", COMPARE),
        "divergence": ("how far two checkpoints of one model lie apart, token by token", DIVERGENCE),
    },
    examples="""\
examples:
  tilewise eval run --tasks tilewise_demo --apply-chat-template
  tilewise eval run --tasks mmmu_val --model OpenGVLab/InternVL3-8B --apply-chat-template --output-path ./results \\
      --mmmu-json mmmu.json
  tilewise eval spot --model ./InternVL2-2B --image sign.jpg --image street.jpg
  tilewise eval compare ./results/a ./results/b
  tilewise eval compare demo demo,quantization=int8 --tasks tilewise_demo --apply-chat-template --plot int8.png
  tilewise eval divergence OpenGVLab/InternVL3-8B OpenGVLab/InternVL3-8B-AWQ --plot awq.png
""",
)
