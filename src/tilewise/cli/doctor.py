"""`tilewise doctor`: this machine, its ops and arithmetic (`--ops`, `--golden`), or another server's prompts."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb, table
from tilewise.config import DeviceKind
from tilewise.console import progress_bar
from tilewise.environment import Environment
from tilewise.option import option, word

if TYPE_CHECKING:
    from tilewise.doctor.golden import ModeReport
    from tilewise.doctor.server import ProbeReport, ServerReport
    from tilewise.platforms.trial import OpReport

_FLAGS = (
    *("revision", "hub", "download_dir", "hf_token", "tokenizer", "tokenizer_revision"),
    *("mm_processor_kwargs", "tile_budget", "interleave_mm_strings", "num_frames", "fps"),
)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    GROUP: ClassVar = "doctor"
    words: tuple[str, ...] = word(
        "a server of any kind that speaks OpenAI's API, with its /v1, and the checkpoint whose prompts it should make: "
        "'demo', a folder or a hub id, of which the small files are read; without both, this machine is looked at",
        "URL MODEL",
        (),
    )
    ops: bool = option(
        False, "try every op of the device on random inputs, beside the reference: the first thing on a new card"
    )
    device: DeviceKind = option("auto", "the device that is looked at, without URL and MODEL: cpu, cuda or npu")
    golden: bool = option(
        False, "ask the shipped model in every mode that this machine has, and compare with golden answers"
    )
    api_key: str | None = option(
        None, "of the server (default: VLLM_API_KEY, which nobody else sees)", metavar="KEY", shown=False
    )
    served_model_name: str | None = option(None, "the server's name of the model (default: its first)", metavar="NAME")
    timeout: float = option(120.0, "seconds that one answer of the server may take")
    json: bool = option(False, "print everything as JSON")


def doctor(line: CommandLine) -> int:
    options = line.take(DoctorOptions)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # golden answers and prompts are Chinese in part, whatever the locale
    for name in ("golden", "ops"):
        if getattr(options, name) and options.words:
            raise BadUsage(f"--{name} is about this machine: leave URL and MODEL out, or --{name}")
    if options.ops and options.golden:
        raise BadUsage("--ops and --golden are two examinations: run one after the other")
    if options.words and options.device != "auto":
        raise BadUsage(f"--device {options.device} is about this machine: leave URL and MODEL out, or --device")
    if options.ops:
        return _ops(options)
    if options.golden:
        return _golden(options)
    if options.words:
        return _server(options, engine_options(line))
    return _machine(options)


def _machine(options: DoctorOptions) -> int:
    from tilewise.platforms import current_platform
    from tilewise.platforms.ascend import npu_missing
    from tilewise.platforms.cuda import cuda_missing

    diagnosis = current_platform(options.device).diagnose()
    for name, why in (("GPU", cuda_missing()), ("NPU", npu_missing())):
        if why is not None:
            diagnosis.facts[name] = f"none: {why}"
    if options.json:
        print(json.dumps(dataclasses.asdict(diagnosis), indent=2))
        return 0
    print(table(list(diagnosis.facts.items())))
    print()
    print(table([("OP", "BY", "WHY"), *((choice.op, choice.path, choice.why) for choice in diagnosis.choices)]))
    return 0


def _ops(options: DoctorOptions) -> int:
    from tilewise.platforms import current_platform
    from tilewise.platforms.trial import CASES, dtypes_of, try_case

    platform = current_platform(options.device)
    ops, tried = platform.ops(), [(name, dtype) for name in CASES for dtype in dtypes_of(platform)]
    reports: list[OpReport] = []
    with progress_bar("Trying ops", len(tried)) as advance:
        for name, dtype in tried:
            reports.append(try_case(name, platform, ops, dtype))
            advance(1)
    if not options.json:
        print(table(list(platform.diagnose().facts.items())))
        print()
    rows = [("CASE", "DTYPE", "WORST", "ALLOWED", "VERDICT"), *map(_op_row, reports)]
    return _tell({f"{one.case}, {one.dtype}": one for one in reports}, "cases", rows, options.json)


def _op_row(report: OpReport) -> tuple[str, ...]:
    worst = "" if report.worst is None else f"{report.worst:.1e}"
    return (report.case, report.dtype, worst, f"{report.allowed:g}", report.verdict)


def _tell(
    reports: Mapping[str, OpReport | ModeReport], what: str, rows: Sequence[tuple[str, ...]], as_json: bool
) -> int:
    """Print the table of what was tried, and what of it is wrong, by its name; return the exit status."""
    wrong = [report for report in reports.values() if report.verdict in ("off", "failed")]
    if as_json:
        found = [dataclasses.asdict(report) for report in reports.values()]
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return 1 if wrong else 0
    print(table(rows))
    print()
    for name, report in reports.items():
        if report.why:
            print(f"{name}: {report.verdict}: {report.why}")
    tried = sum(report.verdict != "not here" for report in reports.values())
    print(f"{tried - len(wrong)} of {tried} {what} are right." if wrong else f"All {tried} {what} are right.")
    return 1 if wrong else 0


def _golden(options: DoctorOptions) -> int:
    from tilewise.doctor.golden import models, modes_here, read_golden, try_mode

    modes, golden = modes_here(options.device), read_golden()
    reports: list[ModeReport] = []
    with models() as model_of, progress_bar("Trying modes", len(modes)) as advance:
        for mode in modes:
            reports.append(try_mode(mode, model_of(mode.arithmetic), golden[mode.arithmetic]))
            advance(1)
    rows = [("MODE", "ANSWERS", "WORST", "ALLOWED", "VERDICT"), *map(_mode_row, reports)]
    return _tell({one.mode: one for one in reports}, "modes", rows, options.json)


def _server(options: DoctorOptions, engine: dict[str, Any]) -> int:
    from tilewise.chat_server import ChatServer
    from tilewise.config import EngineConfig
    from tilewise.doctor.prompts import OwnPrompts
    from tilewise.doctor.server import ServerDoctor

    url, model = _url_and_model(options.words)
    if options.timeout <= 0:
        raise BadUsage(f"--timeout must be above 0 seconds, got {options.timeout:g}")
    prompts = OwnPrompts(EngineConfig.of(**{**engine, "model": model}))
    with ChatServer(url, options.api_key or Environment.here().api_key, options.timeout) as server:
        examination = ServerDoctor(server, options.served_model_name, prompts, engine.get("num_frames"))
        with progress_bar("Asking", examination.count) as advance:
            report = examination.examine(advance)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=2))
    else:
        _print_server(report)
    return 0 if report.told and not report.off else 1


def _url_and_model(words: tuple[str, ...]) -> tuple[str, str]:
    """Return the two words, each of which is told by its look. Raises BadUsage."""
    if len(words) == 1:
        what = "MODEL" if "://" in words[0] else "URL"
        raise BadUsage(f"{words[0]} alone is not enough: {what} is missing, as in tilewise doctor URL MODEL")
    if len(words) > 2:
        raise BadUsage(f"doctor takes URL and MODEL, and not {' '.join(words[2:])}")
    url, model = words
    if not url.startswith(("http://", "https://")):
        turned = " The URL comes first." if model.startswith(("http://", "https://")) else ""
        raise BadUsage(f"URL must begin with http:// or https://, as http://127.0.0.1:8000/v1, got {url}.{turned}")
    return url, model


def _print_server(report: ServerReport) -> None:
    print(f"{report.url} is {report.name}, and serves {report.served}. Compared with {report.model}:")
    print()
    rows = [(probe.part, probe.probe, _text(probe.own), _text(probe.found), probe.verdict) for probe in report.probes]
    print(table([("PART", "PROBE", "OWN", "FOUND", "VERDICT"), *rows]))
    print()
    for part in ("text", "pictures", "look"):
        why = next((probe for probe in report.probes if probe.part == part and probe.verdict != "right"), None)
        if why is not None:
            print(f"{part}: {why.probe}: {why.verdict}{_because(why)}.")
    for finding in report.findings:
        print(f"Likely: {finding.text}.")
        for remedy in finding.remedies:
            print(f"Remedy: {remedy}.")
    print(_sum_of(report))


def _because(probe: ProbeReport) -> str:
    counts = (
        "" if probe.found is None or probe.found == probe.own else f", {probe.found} tokens in place of {probe.own}"
    )
    return counts + (f", {probe.why}" if probe.why else "")


def _sum_of(report: ServerReport) -> str:
    if report.off:
        return f"{len(report.off)} of {len(report.probes)} probes are off."
    if not report.told:
        return "It cannot be told whether this server asks right."
    untold = sum(probe.verdict == "not told" for probe in report.probes)
    return "This server makes the model's own prompts." + (f" Not told: {untold} probes." if untold else "")


def _text(count: int | None) -> str:
    return "" if count is None else str(count)


def _mode_row(report: ModeReport) -> tuple[str, ...]:
    if report.worst is None:
        return (report.mode, "", "", "", report.verdict)
    answers = f"{report.right} of {report.questions}"
    return (report.mode, answers, f"{report.worst:.5f}", f"{report.allowed:g}", report.verdict)


DOCTOR = Verb(
    usage="tilewise doctor [--ops | --golden | URL MODEL] [OPTION ...]",
    about="Say what is right and what is not. Alone: what Tilewise finds on this machine, and for each op which "
    "implementation computes it and why; the CPU's kernels are built where that has not happened yet. With --ops: "
    "whether each op gives what the reference gives, on random inputs. With --golden: whether the arithmetic is right, "
    "in every mode that there is here. With URL and MODEL: whether a server makes the prompts that the checkpoint was "
    "trained with: template, special tokens, tiles of pictures. The exit status is 1 if something is off, or if "
    "nothing could be told.",
    run=doctor,
    options=(DoctorOptions,),
    shared=partial(engine_flags, _FLAGS),
    examples="""\
examples:
  tilewise doctor
      which kernels compute here; --json for a bug report
  tilewise doctor --ops --device npu
      every op on a card: seconds, and what to send with a report
  tilewise doctor --golden
      a new CPU, GPU, compiler or release of torch: about a minute
  tilewise doctor http://127.0.0.1:8000/v1 OpenGVLab/InternVL3-8B
      vLLM, SGLang, LMDeploy, llama.cpp or Tilewise: its counts of tokens, text and pictures, against the model's own
  VLLM_API_KEY=... tilewise doctor https://vision.example/v1 ./InternVL3-8B --served-model-name vision --json
      for scripts
  tilewise doctor http://127.0.0.1:8000/v1 ./InternVL3-8B --mm-processor-kwargs max_dynamic_patch=6
      what is right if the server was started with six tiles a picture
""",
)
