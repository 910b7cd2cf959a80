"""Options of a quantisation, checked before torch is loaded or a weight is fetched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilewise.errors import InvalidConfig
from tilewise.option import check_range, check_types, option

COMPRESSED_TENSORS, MODELSLIM = "compressed-tensors", "modelslim"
FORMATS = (COMPRESSED_TENSORS, MODELSLIM)
W8A8, W8A8_STATIC, W8A16, W4A16, FP8 = "w8a8", "w8a8-static", "w8a16", "w4a16", "fp8"
SCHEMES = {
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


@dataclass(frozen=True)
class QuantizeOptions:
    """A source checkpoint, where its quantised copy goes, and how it is rounded."""

    model: str = option("demo", "'demo', a folder or a hub id", "model")
    out: str = option("", "the folder that is written", "model")
    scheme: str = option(W8A8, "how matrices are rounded", "scheme")
    format: str = option(COMPRESSED_TENSORS, "whose files are written", "scheme")
    group_size: int | None = option(None, "inputs that share a scale", "scheme")
    asymmetric: bool = option(False, "zero points for groups of 4 bits", "scheme")
    error_feedback: bool = option(True, "GPTQ for 4 bits", "scheme")
    smooth: float | None = option(None, "strength of smoothing, from 0 to 1", "scheme")
    vision: bool = option(False, "vision tower and projector as well", "scheme")
    calibration: str | None = option(None, "folder of pictures and prompts", "calibration")
    calibration_samples: int | None = option(None, "most samples", "calibration")
    max_shard_bytes: int = option(4 * 2**30, "largest file of weights", "files")

    def __post_init__(self) -> None:
        """Raise InvalidConfig for values that cannot be, and for options that would change nothing."""
        check_types(self)
        check_range("calibration_samples", self.calibration_samples, 1)
        check_range("max_shard_size", self.max_shard_bytes, 1)
        check_range("smooth", self.smooth, 0, 1)
        self._check_scheme()
        if self.group_size is not None and self.group_size not in GROUPS:
            known = ", ".join(map(str, GROUPS))
            raise InvalidConfig(f"group_size must be one of {known}, got {self.group_size}.")
        if self.calibration is not None and not Path(self.calibration).expanduser().is_dir():
            raise InvalidConfig(f"calibration must be a folder, and {self.calibration} is none.")

    def _check_scheme(self) -> None:
        if self.scheme not in SCHEMES:
            raise InvalidConfig(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}.")
        if self.format not in FORMATS:
            raise InvalidConfig(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}.")
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
