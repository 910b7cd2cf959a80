"""`tilewise eval run | spot | compare | divergence`: how often a model is right, and how alike two of them are."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from tilewise.cli.options import VerbParser, add_engine_flags, engine_options, json_object

EXAMPLES = """\
examples:
  tilewise eval run --tasks tilewise_demo --apply-chat-template
  tilewise eval run --tasks mmmu_val --model OpenGVLab/InternVL3-8B --apply-chat-template --output-path ./results \\
      --mmmu-json mmmu.json
  tilewise eval spot --model ./InternVL2-2B --image sign.jpg --image street.jpg
  tilewise eval compare ./results/a ./results/b
  tilewise eval compare demo demo,quantization=int8 --tasks tilewise_demo --apply-chat-template --plot int8.png
  tilewise eval divergence OpenGVLab/InternVL3-8B OpenGVLab/InternVL3-8B-AWQ --plot awq.png
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "eval",
        description="Evaluate a model. docs/evaluation.md explains it; lm_eval is an extra: tilewise[eval].",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title="evaluations", metavar="WHAT", required=True, parser_class=VerbParser)
    add_run(kinds)
    add_spot(kinds)
    add_compare(kinds)
    add_divergence(kinds)


def add_run(kinds: Any) -> None:
    parser = kinds.add_parser(
        "run",
        help="lm_eval's tasks, answered by this engine",
        description="Answer tasks of lm_eval. Flags have lm_eval's names; with --output-path or --resume-dir a run "
        "that was ended goes on where it was.",
    )
    parser.add_argument(
        "--tasks", required=True, metavar="T[,T]", help="names, patterns such as mmmu_val_*, YAML files"
    )
    add_task_flags(parser)
    parser.add_argument("--output-path", type=Path, metavar="DIR", help="folder for results, samples and answers")
    parser.add_argument(
        "--log-samples", action=argparse.BooleanOptionalAction, default=True, help="write every row (default: yes)"
    )
    parser.add_argument("--predict-only", action="store_true", help="answers alone, without metrics")
    parser.add_argument(
        "--resume-dir", type=Path, metavar="DIR", help="where answers are kept (default: --output-path)"
    )
    parser.add_argument("--mmmu-json", type=Path, metavar="FILE", help="accuracy by subject of mmmu_val")
    add_engine_flags(parser)
    parser.set_defaults(run=run_tasks)


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of lm_eval that decide what is asked."""
    group = parser.add_argument_group("task options")
    add = group.add_argument
    add("--limit", "-L", type=float, metavar="N", help="rows a task, or below 1 a share of them")
    add("--num-fewshot", type=int, metavar="N", help="examples in front of each question")
    add("--apply-chat-template", nargs="?", const=True, default=False, metavar="NAME", help="as a conversation")
    add("--system-instruction", metavar="TEXT", help="system message in place of the built-in one")
    add("--fewshot-as-multiturn", action=argparse.BooleanOptionalAction, default=True, help="examples are turns")
    add(
        "--gen-kwargs",
        type=keywords,
        metavar="K=V[,K=V]",
        help="over those of the tasks: temperature=0.8,do_sample=True",
    )
    add("--include-path", type=Path, metavar="DIR", help="folder with tasks of your own")
    add("--data-dir", type=Path, metavar="DIR", help="folder of data sets by hub name, as DIR/MMMU/MMMU")
    add("--batch-size", type=batch_size, default="auto", metavar="N", help="questions at once (default: auto)")
    add("--max-gen-toks", type=int, default=256, metavar="N", help="longest answer of tasks that name none (256)")
    add("--max-images", type=int, metavar="N", help="pictures a question; more are left out and counted")
    add("--enable-thinking", action="store_true", help="let the model reason first (InternVL3.5)")
    add("--seed", type=int, default=1234, metavar="N", help="of examples and of draws (default: 1234)")


def add_spot(kinds: Any) -> None:
    parser = kinds.add_parser(
        "spot",
        help="five questions with verdicts: text, two descriptions, reasoning, Chinese",
        description="Ask five questions, and judge by rule whether each was answered: not whether the answer is true. "
        "Exits 1 if one was not.",
    )
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; one or two of them")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write questions, answers and verdicts")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write them as text, a line each as they come")
    add_engine_flags(parser)
    parser.set_defaults(run=run_spot)


def add_compare(kinds: Any) -> None:
    parser = kinds.add_parser(
        "compare",
        help="two results, or two engines on the same tasks",
        description="Compare two results (folders or results_*.json of a run), or two engines, each a model with "
        "options (demo,quantization=int8), which are run first.",
    )
    parser.add_argument("first", metavar="A", help="a result, or an engine if --tasks is given")
    parser.add_argument("second", metavar="B", help="the other one")
    parser.add_argument("--tasks", default="", metavar="T[,T]", help="run both engines on these first")
    add_task_flags(parser)
    parser.add_argument("--output-path", type=Path, metavar="DIR", help="folder for both runs, as DIR/a and DIR/b")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (needs tilewise[plot])")
    parser.set_defaults(run=run_compare)


def add_divergence(kinds: Any) -> None:
    parser = kinds.add_parser(
        "divergence",
        help="how far two checkpoints of one model lie apart, token by token",
        description="What a quantised file costs: engine A answers, and both say at each token what they find likely. "
        "Prints the mean KL divergence, how often the likeliest token is the same, and the prompts that are furthest "
        "apart. An engine is a model with options (demo,quantization=int8).",
    )
    parser.add_argument("first", metavar="A", help="the engine that answers, such as the model in bfloat16")
    parser.add_argument("second", metavar="B", help="the other one, such as a quantised file of it")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help='lines of {"prompt": TEXT, "images": [FILE, ...]}')
    parser.add_argument("--max-tokens", type=_positive, default=32, metavar="N", help="longest answer (default: 32)")
    parser.add_argument("--top", type=_positive, default=128, metavar="N", help="likeliest tokens compared (128)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every prompt")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (needs tilewise[plot])")
    parser.set_defaults(run=run_divergence)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run_tasks(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tilewise.evals.results import QuestionCounts
    from tilewise.evals.run import evaluate, score_table

    results = evaluate(eval_options(options, engine_options(options)))
    console = Console(width=120)
    console.print(score_table(results))
    for line in QuestionCounts.from_json(results["config"]["tilewise"]).sentences():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def run_spot(options: argparse.Namespace) -> int:
    from tilewise.evals.spot import spot_check

    return spot_check(engine_options(options), options.image, options.max_tokens, options.json, options.log)


def run_compare(options: argparse.Namespace) -> int:
    from tilewise.evals.comparison import compare_engines, compare_results

    if options.tasks:
        return compare_engines(options.first, options.second, eval_options(options, {}), options.json, options.plot)
    return compare_results(options.first, options.second, options.json, options.plot)


def run_divergence(options: argparse.Namespace) -> int:
    from tilewise.evals.divergence import measure_divergence, read_prompts

    prompts = read_prompts(options.prompts)
    return measure_divergence(
        options.first, options.second, prompts, options.max_tokens, options.top, options.json, options.plot
    )


def eval_options(options: argparse.Namespace, engine: dict[str, Any]) -> Any:
    """Return the EvalOptions of the flags that the verb has."""
    import dataclasses

    from tilewise.evals.run import EvalOptions

    names = {field.name for field in dataclasses.fields(EvalOptions)} - {"tasks", "engine"}
    given = {name: value for name, value in vars(options).items() if name in names}
    tasks = tuple(name.strip() for name in options.tasks.split(",") if name.strip())
    return EvalOptions(tasks=tasks, engine=engine, **given)


def batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from None


def keywords(text: str) -> dict[str, Any]:
    """Read JSON, or `name=value,name=value` with values as Python writes them; any other value is a text."""
    if text.lstrip().startswith("{"):
        return json_object(text)
    pairs = (item.partition("=") for item in text.split(","))
    return {name.strip(): _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
