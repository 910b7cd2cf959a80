"""`tilewise eval run | spot | compare | divergence`: how often a model is right, and how alike two of them are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb, VerbGroup
from tilewise.eval_options import EvalOptions, TaskOptions, task_names
from tilewise.option import option, word


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number above 0")
    return int(text)


def run_tasks(line: CommandLine) -> int:
    from rich.console import Console

    from tilewise.evals.results import QuestionCounts
    from tilewise.evals.run import evaluate, score_table

    options, questions = line.take(EvalOptions), line.take(TaskOptions)
    results = evaluate(options, questions, **engine_options(line))
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
    tasks: tuple[str, ...] = option((), "run both engines on these first", read=task_names, metavar="T[,T]")
    output_path: Path | None = option(None, "folder for both runs, as DIR/a and DIR/b", metavar="DIR")
    json: Path | None = option(None, "write the comparison", metavar="FILE")
    plot: Path | None = option(None, "draw it (needs tilewise[plot])", metavar="FILE.png")


def run_compare(line: CommandLine) -> int:
    from tilewise.evals.comparison import compare_engines, compare_results

    options, questions = line.take(CompareOptions), line.take(TaskOptions)
    if not options.tasks:
        return compare_results(options.first, options.second, options.json, options.plot)
    run = EvalOptions(tasks=options.tasks, output_path=options.output_path)
    return compare_engines(options.first, options.second, run, questions, options.json, options.plot)


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
    options=(EvalOptions, TaskOptions),
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
