"""`tilewise quantize MODEL OUT`: write a checkpoint with int8, 4-bit or FP8 matrices."""

from __future__ import annotations

from functools import partial

from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import engine_flags, engine_options
from tilewise.cli.flags.verb import Verb
from tilewise.quantize import SCHEMES, QuantizeOptions, QuantizeReport
from tilewise.units import in_bytes


def run(line: CommandLine) -> int:
    wanted = line.take(QuantizeOptions)
    hub = engine_options(line)
    # Imported here, not above: torch takes longer to load than all that a caller can get wrong takes to check.
    from tilewise.quantize.run import quantize

    report = quantize(wanted, **hub)
    print(
        f"{wanted.folder}: {len(report.layers):,} layers in {wanted.scheme}, {in_bytes(report.bytes_before)} became "
        f"{in_bytes(report.bytes_after)}."
    )
    print(f"{_about_errors(report)} README.md there has more.")
    return 0


def _about_errors(report: QuantizeReport) -> str:
    name, error = report.worst[0]
    if error.outputs is None:
        measured, mean, worst = "weights", report.mean_error, error.weights
    else:
        measured, mean, worst = "results on the samples", report.mean_output_error or 0.0, error.outputs
    return f"Relative error of {measured}: mean {100 * mean:.2f} %. Worst layer: {name}, {100 * worst:.2f} %."


QUANTIZE = Verb(
    usage="tilewise quantize MODEL OUT [OPTION ...]",
    about="Write a quantised copy of a checkpoint, in a format that Tilewise, vLLM and others load. Norms, embeddings, "
    "the head and routers stay in floats, and so do vision tower and projector without --vision. OUT gets a model card "
    "with the error of each layer.",
    run=run,
    options=(QuantizeOptions,),
    shared=partial(engine_flags, ("revision", "hub", "download_dir", "hf_token", "adapter")),
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
