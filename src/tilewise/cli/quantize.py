"""`tilewise quantize MODEL OUT`: write a checkpoint with int8, 4-bit or FP8 matrices."""

from __future__ import annotations

import argparse
from typing import Any

from tilewise.cli.options import add_engine_flags, engine_options
from tilewise.quantize import COMPRESSED_TENSORS, FORMATS, SCHEMES, USUAL_STRENGTH, QuantizeOptions
from tilewise.units import in_bytes, read_amount

EXAMPLES = """\
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
"""
_HUB = ("revision", "hub", "download_dir", "hf_token")


def add_parser(verbs: Any) -> None:
    schemes = "\n".join(f"  {name:12}{text}" for name, text in SCHEMES.items())
    parser = verbs.add_parser(
        "quantize",
        usage="tilewise quantize MODEL OUT [OPTION ...]",
        description="Write a quantised copy of a checkpoint, in a format that Tilewise, vLLM and others load. Norms, "
        "embeddings, the head and routers stay in floats, and so do vision tower and projector without --vision. OUT "
        "gets a model card with the error of each layer.",
        epilog=EXAMPLES.format(schemes=schemes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="'demo', a folder or a hub id, in floats")
    parser.add_argument(
        "out",
        metavar="OUT",
        help="a folder that is new, empty, or of a run that was ended; not just demo, which is the shipped model",
    )
    _add_scheme(parser)
    _add_calibration(parser)
    parser.add_argument(
        "--max-shard-size",
        type=_amount,
        default=QuantizeOptions.max_shard_bytes,
        metavar="BYTES",
        help="largest file of weights, such as 500M or 4G, powers of 1024 (default: 4G)",
    )
    add_engine_flags(parser, only=_HUB)
    parser.set_defaults(run=run)


def _amount(text: str) -> int:
    try:
        return read_amount(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_scheme(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is rounded, and how").add_argument
    add("--scheme", choices=tuple(SCHEMES), default=QuantizeOptions.scheme, help="see below (default: w8a8)")
    add("--format", choices=FORMATS, default=COMPRESSED_TENSORS, help=f"of the files (default: {COMPRESSED_TENSORS})")
    add(
        "--group-size",
        type=int,
        metavar="N",
        help="w4a16: inputs that share a scale (default: 128, or as many of 64, 32, 16 as divide the inputs of every "
        "layer, else all)",
    )
    add("--asymmetric", action="store_true", help="w4a16: a zero point for each group")
    add(
        "--error-feedback",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="w4a16: make up for what rounding misses (GPTQ; default: yes), or round to the nearest in seconds",
    )
    add(
        "--smooth",
        nargs="?",
        const=USUAL_STRENGTH,
        type=_strength,
        metavar="STRENGTH",
        help="w8a8, w8a8-static: move the range of outlying activations into weights (SmoothQuant), the more of it "
        f"the nearer to 1 (default: no; without a number: {USUAL_STRENGTH})",
    )
    add("--vision", action="store_true", help="vision tower and projector as well")


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "calibration, of w8a8-static, of w4a16 with error feedback, and of --smooth"
    ).add_argument
    add(
        "--calibration",
        metavar="FOLDER",
        help="pictures and prompts as the model will see them: pictures, .txt files with a prompt each, .jsonl files "
        'with a prompt or {"prompt": ..., "images": [...]} a line (default: a small set that ships)',
    )
    add("--calibration-samples", type=int, metavar="N", help="most samples that are used (default: 48)")


def _strength(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        why = f"{text!r} is no strength from 0 to 1: name MODEL and OUT in front, or give one, --smooth=0.5"
        raise argparse.ArgumentTypeError(why) from None


def run(options: argparse.Namespace) -> int:
    wanted = QuantizeOptions(
        model=options.model,
        out=options.out,
        scheme=options.scheme,
        format=options.format,
        group_size=options.group_size,
        asymmetric=options.asymmetric,
        error_feedback=options.error_feedback,
        smooth=options.smooth,
        vision=options.vision,
        calibration=options.calibration,
        calibration_samples=options.calibration_samples,
        max_shard_bytes=options.max_shard_size,
    )
    hub = engine_options(options)
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
