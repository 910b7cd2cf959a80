"""Quantised copies of checkpoints: what is asked for, checked before torch is loaded or a weight is fetched, and the
report of what came of it, which is also the copy's model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from tilewise import __version__
from tilewise.errors import InvalidConfig
from tilewise.option import check_range, check_types, option, word
from tilewise.units import in_bytes

if TYPE_CHECKING:
    from tilewise.quantize.formats import Plan

Format = Literal["compressed-tensors", "modelslim"]
COMPRESSED_TENSORS, MODELSLIM = get_args(Format)
Scheme = Literal["w8a8", "w8a8-static", "w8a16", "w4a16", "fp8"]
W8A8, W8A8_STATIC, W8A16, W4A16, FP8 = get_args(Scheme)
SCHEMES: dict[str, str] = {
    W8A8: "int8 by int8: a scale for each output, rows of activations rounded as they come",
    W8A8_STATIC: "the same with scales of activations that calibration found; experts and the layers that close an "
    "MLP, whose activations have outliers, stay as in w8a8",
    W8A16: "int8 weights with a scale for each output; activations stay floats",
    W4A16: "4-bit weights with a scale for each group of inputs; activations stay floats",
    FP8: "8-bit floats (E4M3): a scale for each output, rows of activations rounded as they come",
}
"""Schemes, each described in words."""
_IN_MODELSLIM = (W8A8, W8A8_STATIC, W8A16)
SMOOTHED = (W8A8, W8A8_STATIC)
"""Schemes that may be smoothed."""
USUAL_STRENGTH = 0.5
"""Usual strength of smoothing, by which activations and weights come to have the same range."""
GROUPS = (16, 32, 64, 128, 256)
"""Numbers of inputs that may share a scale."""
_SHOWN = 10
"""Most layers that the card names, the worst first."""


_CALIBRATION = "calibration, of w8a8-static, of w4a16 with error feedback, and of --smooth"


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """A source checkpoint, where its quantised copy goes, and how it is rounded."""

    GROUP: ClassVar = "what is rounded, and how"
    model: str = word("'demo', a folder or a hub id, in floats", "MODEL")
    out: str = word(
        "a folder that is new, empty, or of a run that was ended; not just demo, which is the shipped model", "OUT"
    )
    scheme: Scheme = option(W8A8, "see below", metavar="NAME")
    format: Format = option(COMPRESSED_TENSORS, "of the files", metavar="NAME")
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
        4 * 2**30,
        "largest file of weights, such as 500M or 4G, powers of 1024",
        "files",
        metavar="BYTES",
    )

    def __post_init__(self) -> None:
        """Raise InvalidConfig for values that cannot be, and for options that would change nothing."""
        check_types(self)
        check_range("calibration_samples", self.calibration_samples, 1)
        check_range("max_shard_size", self.max_shard_size, 1)
        check_range("smooth", self.smooth, 0, 1)
        self._check_scheme()
        if self.group_size is not None and self.group_size not in GROUPS:
            known = ", ".join(map(str, GROUPS))
            raise InvalidConfig(f"group_size must be one of {known}, got {self.group_size}.")
        if self.calibration is not None and not Path(self.calibration).expanduser().is_dir():
            raise InvalidConfig(f"calibration must be a folder, and {self.calibration} is none.")

    def _check_scheme(self) -> None:
        if self.format == MODELSLIM and self.scheme not in _IN_MODELSLIM:
            raise InvalidConfig(
                f"ModelSlim's files keep {', '.join(_IN_MODELSLIM)}, and scheme is {self.scheme}: take one of these, "
                f"or format {COMPRESSED_TENSORS}."
            )
        of_groups = {
            "group_size": self.group_size is not None,
            "asymmetric": self.asymmetric,
            "no_error_feedback": not self.error_feedback,
        }
        self._refuse(of_groups, self.scheme == W4A16, f"it belongs to scheme {W4A16}")
        if self.smooth is not None and self.scheme not in SMOOTHED:
            raise InvalidConfig(
                f"smooth={self.smooth:g} belongs to schemes {' and '.join(SMOOTHED)}, and scheme is {self.scheme}: "
                "take one of these, or leave smooth out."
            )
        of_samples = {
            "calibration": self.calibration is not None,
            "calibration_samples": self.calibration_samples is not None,
        }
        calibrated = f"only {W8A8_STATIC}, {W4A16} with error feedback, and what is smoothed calibrate"
        self._refuse(of_samples, self.calibrates, calibrated)

    def _refuse(self, given: dict[str, bool], apply: bool, why: str) -> None:
        for name, is_given in given.items():
            if is_given and not apply:
                raise InvalidConfig(f"{name} would change nothing with scheme {self.scheme}: {why}. Leave it out.")

    @property
    def calibrates(self) -> bool:
        """True if activations are measured: for static scales, for error feedback, or for smoothing."""
        if self.scheme == W4A16:
            return self.error_feedback
        return self.scheme == W8A8_STATIC or self.smooth is not None

    @property
    def folder(self) -> Path:
        """Output folder as an absolute path, so that no message takes it for a model's name."""
        return Path(self.out).expanduser().absolute()

    def journal(self) -> dict[str, Any]:
        """Return the options that have to be the same for a run to go on where another one was ended."""
        left_out = ("model", "out")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True, slots=True)
class LayerError:
    """The relative errors of a rounded layer."""

    weights: float
    """Norm of the change over the norm of the matrix."""
    outputs: float | None = None
    """Norm of the change over the norm of the products with the calibration's activations; None = not measured."""


@dataclass(frozen=True, slots=True)
class NormFactors:
    """The mean and the largest of the smoothing factors by which a norm was divided."""

    mean: float
    largest: float


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
