"""`tilewise quantize MODEL OUT`: write a checkpoint with int8, 4-bit or FP8 matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from tilewise.cli.flags.flag import read_choice, word
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb
from tilewise.option import option
from tilewise.quantize import COMPRESSED_TENSORS, FORMATS, SCHEMES, USUAL_STRENGTH, QuantizeOptions
from tilewise.units import in_bytes, read_amount

_SCHEMES = "what is rounded, and how"
_CALIBRATION = "calibration, of w8a8-static, of w4a16 with error feedback, and of --smooth"


def _strength(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no strength from 0 to 1: name MODEL and OUT in front, or give one, --smooth=0.5"
        ) from None


@dataclass(frozen=True, kw_only=True)
class QuantizeFlags:
    """The options of a quantisation as they are written on a line."""

    GROUP: ClassVar = _SCHEMES
    model: str = word("'demo', a folder or a hub id, in floats", "MODEL")
    out: str = word(
        "a folder that is new, empty, or of a run that was ended; not just demo, which is the shipped model", "OUT"
    )
    scheme: str = option(QuantizeOptions.scheme, "see below", read=partial(read_choice, tuple(SCHEMES)), metavar="NAME")
    format: str = option(COMPRESSED_TENSORS, "of the files", read=partial(read_choice, FORMATS), metavar="NAME")
    group_size: int | None = option(
        None,
        "w4a16: inputs that share a scale (default: 128, or as many of 64, 32, 16 as divide the inputs of every layer, "
        "else all)",
    )
    asymmetric: bool = option(False, "w4a16: a zero point for each group")
    error_feedback: bool = option(
        True, "w4a16: make up for what rounding misses (GPTQ), or round to the nearest in seconds"
    )
    smooth: float | None = option(
        None,
        "w8a8, w8a8-static: move the range of outlying activations into weights (SmoothQuant), the more of it the "
        f"nearer to 1 (default: no; without a number: {USUAL_STRENGTH})",
        read=_strength,
        metavar="STRENGTH",
        bare=USUAL_STRENGTH,
    )
    vision: bool = option(False, "vision tower and projector as well")
    calibration: str | None = option(
        None,
        "pictures and prompts as the model will see them: pictures, .txt files with a prompt each, .jsonl files with "
        'a prompt or {"prompt": ..., "images": [...]} a line (default: a small set that ships)',
        _CALIBRATION,
        metavar="FOLDER",
    )
    calibration_samples: int | None = option(None, "most samples that are used (default: 48)", _CALIBRATION)
    max_shard_size: int = option(
        QuantizeOptions.max_shard_bytes,
        "largest file of weights, such as 500M or 4G, powers of 1024",
        "files",
        read_amount,
        metavar="BYTES",
    )

    def checked(self) -> QuantizeOptions:
        """Return the options. Raises InvalidConfig for those that cannot be."""
        given: dict[str, Any] = vars(self) | {"max_shard_bytes": self.max_shard_size}
        del given["max_shard_size"]
        return QuantizeOptions(**given)


def run(line: CommandLine) -> int:
    wanted = line.take(QuantizeFlags).checked()
    hub = engine_options(line)
    # Imported here, not above: torch takes longer to load than all that a caller can get wrong takes to check.
    from tilewise.quantize.run import quantize

    report = quantize(wanted, **hub)
    name, error = report.worst[0]
    measured = "weights" if error.outputs is None else "results on the samples"
    mean, worst = (
        (report.mean_error, error.weights) if error.outputs is None else (report.mean_output_error, error.outputs)
    )
    print(
        f"{wanted.folder}: {len(report.layers):,} layers in {wanted.scheme}, {in_bytes(report.bytes_before)} became "
        f"{in_bytes(report.bytes_after)}."
    )
    print(
        f"Relative error of {measured}: mean {100 * (mean or 0):.2f} %. Worst layer: {name}, {100 * worst:.2f} %. "
        "README.md there has more."
    )
    return 0


QUANTIZE = Verb(
    usage="tilewise quantize MODEL OUT [OPTION ...]",
    about="Write a quantised copy of a checkpoint, in a format that Tilewise, vLLM and others load. Norms, embeddings, "
    "the head and routers stay in floats, and so do vision tower and projector without --vision. OUT gets a model card "
    "with the error of each layer.",
    run=run,
    options=(QuantizeFlags,),
    shared=partial(engine_flags, ("revision", "hub", "download_dir", "hf_token")),
    examples="""\
schemes:
{schemes}

examples:
  tilewise quantize OpenGVLab/InternVL3_5-8B ./InternVL3_5-8B-w8a8
  tilewise quantize ./InternVL3-8B ./InternVL3-8B-w4a16 --scheme w4a16 --calibration ./pictures
  tilewise quantize ./InternVL3_5-38B ./InternVL3_5-38B-w8a8 --scheme w8a8-static --format modelslim
  tilewise quantize ./InternVL3_5-38B ./InternVL3_5-38B-w8a8 --smooth
  tilewise serve ./InternVL3_5-8B-w8a8

Which to take: w8a8 halves memory, keeps answers, and is the fastest where int8 multiplies fast; fp8 is its counterpart
on devices that multiply FP8. w4a16 is a quarter of the memory and the fastest where one user waits for one answer.
w8a8-static is for engines that want it, on Ascend above all. --smooth helps both where a few inputs are far larger than
all others, which one scale a row would have to span: calibration finds them, norms are divided by a factor for each
input, and the matrices that read them are multiplied by it. Files stay those of the scheme, for any reader.

Weights are read and written tensor by tensor, and samples go through one layer of the model after the other: memory is
needed for one layer, not for the model. A run that was killed goes on when the same command is given again.
""".format(schemes="\n".join(f"  {name:12}{text}" for name, text in SCHEMES.items())),
)
