"""`tilewise plan MODEL`: whether a deployment fits, what it holds and how fast it can be, from the config alone."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from tilewise.cli.flags.flag import BadUsage, dashes
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import Settings, make_settings, serve_flags, values_of_line
from tilewise.cli.flags.verb import Verb
from tilewise.config import AUTO_LENGTH
from tilewise.environment import Environment
from tilewise.errors import TilewiseError
from tilewise.host import available_memory
from tilewise.layout import ExpertPlacement, Layout, flags_of
from tilewise.option import check_range, option
from tilewise.plan.request import PlanRequest, RequestShape, read_devices
from tilewise.quantize import SCHEMES

_USUAL = RequestShape()


def _scheme(text: str) -> str | None:
    return None if text in ("", "None") else text


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """Options of the engine about the layout; without one of them, layouts are compared."""

    GROUP: ClassVar = "planning"
    tensor_parallel_size: int | None = option(None, "ranks that share each layer (default: 1)")
    pipeline_parallel_size: int | None = option(None, "stages that share the layers (default: 1)")
    data_parallel_size: int | None = option(None, "replicas of the model (default: 1)")
    enable_expert_parallel: bool | None = option(None, "each rank has some experts whole (default: False)")
    expert_placement_strategy: ExpertPlacement | None = option(None, "which experts a rank has (default: linear)")

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    GROUP: ClassVar = "planning"
    devices: str | None = option(
        None,
        "how many devices, and of how much memory or which name: 16x64GiB, 2xH100, RTX4090, cpu (this machine), "
        "cpu:16GiB (default: this machine, as it is now)",
    )
    bandwidth: str | None = option(None, "of one device's memory, in GB/s or as 1.6TB/s, where --devices names none")
    tflops: str | None = option(None, "of one device, dense bfloat16, or with int8 behind it as 376:752")
    prompt_tokens: int = option(_USUAL.prompt_tokens, "tokens of text in a request")
    pictures: int = option(_USUAL.pictures, "pictures in a request")
    tiles: int | None = option(None, "tiles of a picture (default: the most that the checkpoint cuts, with thumbnail)")
    answer_tokens: int = option(_USUAL.answer_tokens, "tokens of an answer")
    json: bool = option(False, "print everything as JSON")
    quantization: str | None = option(
        None,
        "what the checkpoint will be: int8 or fp8 (rounded as it is loaded), w8a8, w8a8-static, w8a16, w4a16 (as "
        "`tilewise quantize` writes them), awq, gptq; of one that is quantised already, this is found from its name or "
        "its files",
        read=_scheme,
    )

    @property
    def shape(self) -> RequestShape:
        tiles = _USUAL.tiles if self.tiles is None else self.tiles
        return RequestShape(self.prompt_tokens, self.pictures, tiles, self.answer_tokens)


_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass(frozen=True)
class PlanLine:
    """A command line of `tilewise plan` that was read."""

    options: PlanOptions
    served: dict[str, Any]
    """Values of the flags of a server, but for those of the layout."""
    settings: Settings
    layout: Layout | None
    """The layout that is asked for; None where no flag says it."""

    @classmethod
    def of(cls, line: CommandLine) -> PlanLine:
        """Take a line apart. Raises BadUsage for one that cannot be read, InvalidConfig for one that cannot be done."""
        line.values = values_of_line(line)
        options, layout = line.take(PlanOptions), line.take(LayoutOptions).given
        for name in _SIZES:
            check_range(name, layout.get(name), 0, above=True)
        # A server is asked for the same layout, so that what it refuses is refused here.
        settings = make_settings(line.values | layout, os.environ)
        asked = {*_SIZES, "enable_expert_parallel"} & layout.keys()
        return cls(options, line.values, settings, settings.engine.layout if asked else None)

    def wishes(self) -> PlanRequest:
        options = self.options
        devices = read_devices(options.devices or "cpu", available_memory().total, options.bandwidth, options.tflops)
        stated = options.tiles is not None
        return PlanRequest(
            self.settings.engine, options.quantization, devices, self.layout, options.shape, tiles_stated=stated
        )

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
        if scheme is None and self.options.quantization is not None:
            words += ["--quantization", self.options.quantization]
        flags = flags_of(layout)
        return [*before, " ".join([shlex.join(words), *([flags] if flags else [])])]


def _written(values: dict[str, Any]) -> list[str]:
    """Return flags as they are written on a line."""
    words: list[str] = []
    for name, value in values.items():
        flag = dashes(name)
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


def run(line: CommandLine) -> int:
    try:
        return _print_plan(PlanLine.of(line))
    except TilewiseError as error:  # its usual status, 1, would say that the deployment does not fit
        raise BadUsage(str(error)) from None


def _print_plan(line: PlanLine) -> int:
    """Print the plan, and return the exit status: 0 if it fits, else 1. Raises TilewiseError if it cannot be said."""
    wishes = line.wishes()
    # Not above: torch is loaded only once the line is known to be right.
    from tilewise.capacity.deployment import Deployment
    from tilewise.cli.plan_page import plan_page, record

    with TemporaryDirectory(prefix="tilewise-plan-") as work:
        deployment = Deployment.of(wishes, Path(work), Environment.here())
        shown = json.dumps(record(deployment, line), indent=2) if line.options.json else plan_page(deployment, line)
        print(shown)
        return 0 if deployment.chosen.fits else 1


PLAN = Verb(
    usage="tilewise plan [MODEL] [FLAG ...]",
    about="Say whether a model fits on devices, what each rank's memory goes to, how many requests it holds, and the "
    "least time that a first token and a decode step take. Nothing but the model's small files is read, and of "
    "published InternVL models not even these. Takes the flags of `tilewise serve`. Status 0 = it fits, 1 = it does "
    "not, 2 = it cannot be said.",
    run=run,
    options=(PlanOptions, LayoutOptions),
    shared=serve_flags,
    names_model=True,
    examples="""\
examples:
  tilewise plan OpenGVLab/InternVL3-1B
      on this machine, as `tilewise serve` would start
  tilewise plan OpenGVLab/InternVL3-8B --devices 24GiB --max-model-len 16K
  tilewise plan OpenGVLab/InternVL3-78B-AWQ --devices 2xA100-80G --pictures 4 --answer-tokens 1024
      a named device has a speed, so there are floors, too
  tilewise plan vllm-ascend/InternVL3_5-38B-w8a8 --devices 4x910B2 -tp 4 --max-num-seqs 32
  tilewise plan OpenGVLab/InternVL3-38B --devices 2x48GiB --quantization w4a16 --json
""",
)
