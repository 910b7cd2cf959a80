"""The model card of a quantised checkpoint: what was done, what was measured, how it is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewise import __version__
from tilewise.quantize.formats import Plan
from tilewise.quantize.journal import LayerError, NormFactors
from tilewise.quantize.options import COMPRESSED_TENSORS, SCHEMES, W4A16
from tilewise.units import in_bytes

_SHOWN = 10
"""Most layers that the card names, the worst first."""


@dataclass(frozen=True)
class QuantizeReport:
    """The result of a quantisation: its plan, the errors that were measured, and the sizes."""

    plan: Plan
    layers: Mapping[str, LayerError]
    norms: Mapping[str, NormFactors]
    """Factors of the norms that were smoothed, by name."""
    bytes_before: int
    bytes_after: int
    samples: str
    """Calibration samples in words."""

    @property
    def worst(self) -> list[tuple[str, LayerError]]:
        """All layers, the largest error first: that of their outputs where it was measured, else of their weights."""
        return sorted(self.layers.items(), key=lambda item: -(item[1].outputs or item[1].weights))

    @property
    def mean_error(self) -> float:
        """Mean relative error of the weights over all layers."""
        return sum(error.weights for error in self.layers.values()) / max(1, len(self.layers))

    @property
    def mean_output_error(self) -> float | None:
        """Mean relative error of the outputs over the layers where it was measured; None = in no layer."""
        known = [error.outputs for error in self.layers.values() if error.outputs is not None]
        return sum(known) / len(known) if known else None


def model_card(report: QuantizeReport) -> str:
    """Return the text of the quantised checkpoint's README.md."""
    options = report.plan.options
    name = options.model.rstrip("/").rpartition("/")[2]
    method = "compressed-tensors" if options.format == COMPRESSED_TENSORS else "ascend"
    lines = [
        f"# {name}, {options.scheme}",
        "",
        f"{options.model}, quantised by Tilewise {__version__} (`tilewise quantize`) in the format {options.format}.",
        f"The licence and the terms of use are those of {name}.",
        "",
        "## What was done",
        "",
        "| | |",
        "|---|---|",
        *(f"| {title} | {text} |" for title, text in _facts(report)),
        "",
        "## What was measured",
        "",
        "Relative errors: the norm of what rounding changed, over the norm of what was there. They say how well",
        "numbers were kept. How well questions are answered, `tilewise eval compare` and `eval divergence` say.",
        "",
        *_measured(report),
        "",
        "## Serving it",
        "",
        "```",
        "tilewise serve .                 # the format is found from the files",
        f"vllm serve . --trust-remote-code --quantization {method}",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _facts(report: QuantizeReport) -> list[tuple[str, str]]:
    plan, options = report.plan, report.plan.options
    facts = [("scheme", f"{options.scheme}: {SCHEMES[options.scheme]}")]
    if options.scheme == W4A16:
        group = "all inputs of an output" if plan.rounding.group is None else f"{plan.rounding.group} inputs"
        facts.append(("groups", f"{group}, {'a' if options.asymmetric else ''}symmetric"))
        facts.append(
            ("error feedback", "GPTQ" if options.error_feedback else "none: numbers are rounded to the nearest")
        )
    if options.smooth is not None:
        facts.append(("smoothing", _about_factors(options.smooth, list(report.norms.values()))))
    untouched = "norms, embeddings, head" + ("" if options.vision else ", vision tower, projector")
    if any(matrix.of_expert for matrix in plan.matrices):
        untouched += ", routers"
    return [
        *facts,
        ("calibration", report.samples),
        ("layers quantised", f"{len(plan.matrices):,}"),
        ("in floats", untouched),
        ("weights before", in_bytes(report.bytes_before)),
        ("weights after", in_bytes(report.bytes_after)),
    ]


def _about_factors(strength: float, norms: Sequence[NormFactors]) -> str:
    mean = sum(factors.mean for factors in norms) / max(1, len(norms))
    largest = max((factors.largest for factors in norms), default=1.0)
    return (
        f"SmoothQuant, strength {strength:g}, folded into {len(norms):,} norms and their readers: factors are powers "
        f"of two, {mean:.3g} in the mean, the largest {largest:g}"
    )


def _measured(report: QuantizeReport) -> list[str]:
    def shown(error: float | None) -> str:
        return "" if error is None else f"{100 * error:.3f} %"

    worst = report.worst
    return [
        "| layer | weights | outputs on the samples |",
        "|---|---|---|",
        f"| mean of {len(worst):,} | {shown(report.mean_error)} | {shown(report.mean_output_error)} |",
        *(f"| {name} | {shown(error.weights)} | {shown(error.outputs)} |" for name, error in worst[:_SHOWN]),
        "",
        f"These are the {min(_SHOWN, len(worst))} layers with the largest errors; `quantize.json` has all of them.",
    ]
