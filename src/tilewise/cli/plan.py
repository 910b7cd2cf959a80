"""`tilewise plan MODEL`: whether a deployment fits, what it holds and how fast it can be, from the config alone."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tilewise.cli.flags.flag import BadUsage, Flag
from tilewise.cli.flags.help import asked_for_help, help_page
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.table import Settings, make_settings, names_of, serve_flags, values_of_line
from tilewise.config import AUTO_LENGTH, EngineConfig
from tilewise.errors import TilewiseError
from tilewise.foreign.translate import SHORT_NAMES
from tilewise.host import available_memory
from tilewise.layout import ExpertPlacement, Layout, flags_of
from tilewise.option import check_range
from tilewise.plan.request import PlanRequest, RequestShape, read_devices
from tilewise.quantize import SCHEMES
from tilewise.server.config import ServerConfig

USAGE = "tilewise plan [MODEL] [FLAG ...]"
ABOUT = (
    "Say whether a model fits on devices, what each rank's memory goes to, how many requests it holds, and the least "
    "time that a first token and a decode step take. Nothing but the model's small files is read, and of published "
    "InternVL models not even these. Takes the flags of `tilewise serve`. Status 0 = it fits, 1 = it does not, "
    "2 = it cannot be said."
)
EXAMPLES = """\
examples:
  tilewise plan OpenGVLab/InternVL3-1B
      on this machine, as `tilewise serve` would start
  tilewise plan OpenGVLab/InternVL3-8B --devices 24GiB --max-model-len 16K
  tilewise plan OpenGVLab/InternVL3-78B-AWQ --devices 2xA100-80G --pictures 4 --answer-tokens 1024
      a named device has a speed, so there are floors, too
  tilewise plan vllm-ascend/InternVL3_5-38B-w8a8 --devices 4x910B2 -tp 4 --max-num-seqs 32
  tilewise plan OpenGVLab/InternVL3-38B --devices 2x48GiB --quantization w4a16 --json
"""
_OWN = "planning"
_USUAL = RequestShape()
_SHAPE = ("prompt_tokens", "pictures", "tiles", "answer_tokens")
_PLAN = (
    Flag("devices", str | None, _OWN, "how many devices, and of how much memory or which name: 16x64GiB, 2xH100, "
         "RTX4090, cpu (this machine), cpu:16GiB (default: this machine, as it is now)"),
    Flag("bandwidth", str | None, _OWN, "of one device's memory, in GB/s or as 1.6TB/s, where --devices names none"),
    Flag("tflops", str | None, _OWN, "of one device, dense bfloat16, or with int8 behind it as 376:752"),
    Flag("prompt_tokens", int, _OWN, "tokens of text in a request", _USUAL.prompt_tokens),
    Flag("pictures", int, _OWN, "pictures in a request", _USUAL.pictures),
    Flag("tiles", int | None, _OWN, "tiles of a picture (default: the most that the checkpoint cuts, with thumbnail)"),
    Flag("answer_tokens", int, _OWN, "tokens of an answer", _USUAL.answer_tokens),
    Flag("json", bool, _OWN, "print everything as JSON", False),
    Flag("quantization", str | None, _OWN, "what the checkpoint will be: int8 or fp8 (rounded as it is loaded), w8a8, "
         "w8a8-static, w8a16, w4a16 (as `tilewise quantize` writes them), awq, gptq; of one that is quantised already, "
         "this is found from its name or its files", short=SHORT_NAMES["quantization"]),
)  # fmt: skip
_LAYOUT = (
    Flag("tensor_parallel_size", int, _OWN, "ranks that share each layer", 1, short="-tp"),
    Flag("pipeline_parallel_size", int, _OWN, "stages that share the layers", 1, short="-pp"),
    Flag("data_parallel_size", int, _OWN, "replicas of the model", 1, short="-dp"),
    Flag("enable_expert_parallel", bool, _OWN, "each rank has some experts whole", False, short="-ep"),
    Flag("expert_placement_strategy", ExpertPlacement, _OWN, "which experts a rank has", "linear"),
)
_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("plan", add_help=False)
    parser.takes_all_words = True
    parser.set_defaults(run=run)


def plan_flags() -> list[Flag]:
    """Return the flags of planning, and every flag of `tilewise serve`."""
    own = {flag.name for flag in (*_PLAN, *_LAYOUT)}
    return [*_PLAN, *_LAYOUT, *(flag for flag in serve_flags() if flag.name not in own)]


@dataclass(frozen=True)
class PlanLine:
    """A command line of `tilewise plan` that was read."""

    own: dict[str, Any]
    """Values of the flags of planning and of layouts."""
    served: dict[str, Any]
    """Values of the other flags, which a server gets."""
    settings: Settings

    @classmethod
    def read(cls, words: list[str]) -> PlanLine:
        """Read a line. Raises BadUsage for one that cannot be read, InvalidConfig for one that cannot be done."""
        values = values_of_line(CommandLine.read(words, plan_flags()))
        names = {flag.name for flag in (*_PLAN, *_LAYOUT)}
        own = {name: value for name, value in values.items() if name in names and value is not None}
        served = {name: value for name, value in values.items() if name not in names}
        for name in _SIZES:
            check_range(name, own.get(name), 0, above=True)
        # A server is asked for the same layout, so that what it refuses is refused here.
        known = names_of(EngineConfig) | names_of(ServerConfig)
        layout = {flag.name: own[flag.name] for flag in _LAYOUT if flag.name in own and flag.name in known}
        return cls(own, served, make_settings(served | layout, os.environ))

    def layout(self) -> Layout | None:
        """Return the layout that is asked for; None where no flag says it."""
        if not {*_SIZES, "enable_expert_parallel"} & self.own.keys():
            return None
        return self.settings.engine.layout

    def wishes(self) -> PlanRequest:
        own = self.own
        devices = read_devices(
            own.get("devices", "cpu"), available_memory().total, own.get("bandwidth"), own.get("tflops")
        )
        shape = RequestShape(**{name: own[name] for name in _SHAPE if name in own})
        return PlanRequest(self.settings.engine, own.get("quantization"), devices, self.layout(), shape, "tiles" in own)

    def commands(self, layout: Layout, model: str, scheme: str | None) -> list[str]:
        """Return the commands that start the deployment.

        A `scheme` is one in which the checkpoint has yet to be written: a command or a remark about that comes first.
        """
        before = list[str]()
        if scheme in SCHEMES:
            out = f"./{model.rstrip('/').rpartition('/')[2]}-{scheme}"
            before, model = [shlex.join(["tilewise", "quantize", model, out, "--scheme", scheme])], out
        elif scheme is not None:
            before = [f"# with a checkpoint of {model} in {scheme.upper()} in place of MODEL"]
            model = "MODEL"
        words = ["tilewise", "serve", model, *_written(self.served)]
        if scheme is None and "quantization" in self.own:
            words += ["--quantization", self.own["quantization"]]
        flags = flags_of(layout)
        return [*before, " ".join([shlex.join(words), *([flags] if flags else [])])]


def _written(values: dict[str, Any]) -> list[str]:
    """Return flags as they are written on a line."""
    words: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if name == "model" or value is None:
            continue
        if name == "max_model_len" and value == AUTO_LENGTH:
            value = "auto"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, (tuple, list)):
            words += [flag, *map(str, value)]
        else:
            words += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def run(options: argparse.Namespace) -> int:
    if (topic := asked_for_help(options.words)) is not None:
        print(help_page(USAGE, ABOUT, EXAMPLES, plan_flags(), topic))
        return 0
    try:
        return _print_plan(PlanLine.read(options.words))
    except TilewiseError as error:  # its usual status, 1, would say that the deployment does not fit
        raise BadUsage(str(error)) from None


def _print_plan(line: PlanLine) -> int:
    """Print the plan, and return the exit status: 0 if it fits, else 1. Raises TilewiseError if it cannot be said."""
    wishes = line.wishes()
    # Not above: torch is loaded only once the line is known to be right.
    from tilewise.capacity.deployment import Deployment
    from tilewise.cli.plan_page import plan_page, record

    with TemporaryDirectory(prefix="tilewise-plan-") as work:
        deployment = Deployment.of(wishes, Path(work))
        shown = json.dumps(record(deployment, line), indent=2) if line.own.get("json") else plan_page(deployment, line)
        print(shown)
        return 0 if deployment.chosen.fits else 1
