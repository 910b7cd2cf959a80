"""`tilewise eval run | spot | compare | divergence`: how often a model is right, and how alike two of them are."""

from __future__ import annotations

from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb, VerbGroup
from tilewise.eval_options import CompareOptions, DivergenceOptions, EvalOptions, SpotOptions, TaskOptions


def run_tasks(line: CommandLine) -> int:
    from tilewise.evals.results import QuestionCounts, print_report
    from tilewise.evals.run import evaluate, score_table

    options, questions = line.take(EvalOptions), line.take(TaskOptions)
    results = evaluate(options, questions, **engine_options(line))
    print_report(score_table(results), QuestionCounts.from_json(results["config"]["tilewise"]).sentences())
    return 0


def run_spot(line: CommandLine) -> int:
    from tilewise.evals.spot import spot_check

    return spot_check(line.take(SpotOptions), engine_options(line))


def run_compare(line: CommandLine) -> int:
    from tilewise.evals.comparison import compare

    compare(line.take(CompareOptions), line.take(TaskOptions))
    return 0


def run_divergence(line: CommandLine) -> int:
    from tilewise.evals.divergence import measure_divergence

    measure_divergence(line.take(DivergenceOptions))
    return 0


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
