"""A quantisation from beginning to end: small files, plan, samples, weights, card."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewise import __version__
from tilewise.config import EngineConfig
from tilewise.console import Advance, Bar, TrackedWork, progress_bars
from tilewise.errors import InvalidCheckpoint, InvalidConfig, InvalidRequest, Unfinished
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.models.load import Architecture
from tilewise.quantize import W4A16, LayerError, QuantizeOptions, QuantizeReport, model_card
from tilewise.quantize.activations import MeasuredInputs, SampleActivations, sample_steps
from tilewise.quantize.calibration import about_samples, prepared, samples_digest, samples_of, shipped_samples
from tilewise.quantize.formats import Plan, format_of, small_files, warn_of_missing_code
from tilewise.quantize.modules import Matrix, Places, find_matrices
from tilewise.quantize.output import (
    Journal,
    Shard,
    ShardWriter,
    TensorShape,
    check_folder,
    disk_errors,
    make_folder,
    source_digest,
    split_into_shards,
    write_json,
    write_text,
)
from tilewise.quantize.rounding import (
    RoundedMatrix,
    Rounding,
    group_size,
    relative_error,
    relative_output_error,
    round_matrix,
    round_with_feedback,
)
from tilewise.quantize.smoothing import Smoothing, find_smoothed
from tilewise.types import Request
from tilewise.units import in_bytes
from tilewise.weights.adapter import config_when_merged
from tilewise.weights.checkpoint import DEMO, Checkpoint
from tilewise.weights.files import TORCH_TYPES, SafetensorFiles
from tilewise.weights.folder import CheckpointFolder
from tilewise.weights.merged_files import merged
from tilewise.weights.quantization import method_of


def quantize(options: QuantizeOptions, show: Bar = True, **hub: Any) -> QuantizeReport:
    """Write the quantised copy of a checkpoint; the same call goes on where an earlier one was ended.

    `hub` are options of EngineConfig that say where a hub's models are. Raises InvalidConfig, InvalidRequest,
    InvalidCheckpoint or InvalidMedia for what cannot be done, Unfinished when the disk is full or cannot be written.
    """
    config = EngineConfig.of(model=options.model, **hub)
    checkpoint = Checkpoint.of(config)
    _check_source(options, checkpoint.folder)
    inputs = ModelInputs.of(config)
    checkpoint.fetch_weights()
    with torch.inference_mode():
        return _QuantizeRun(options, inputs).run(show)


class _QuantizeRun:
    """One quantisation: everything is decided, and checked, before the first byte is written."""

    def __init__(self, options: QuantizeOptions, inputs: ModelInputs) -> None:
        self._options, self._inputs = options, inputs
        self._source = inputs.checkpoint.folder
        self._architecture = Architecture.of(self._source, flash_router=False)
        self._files = merged(SafetensorFiles(self._source.path), self._source.adapter)
        self._plan = self._decide()
        self._format = format_of(self._plan, self._architecture.dtype)
        self._entries: list[Matrix | str] = [*self._plan.matrices, *self._plan.floats]
        layers = [self._shapes(entry) for entry in self._entries]
        self._shards, self._groups = split_into_shards(
            options.folder, self._format.weights, layers, options.max_shard_size
        )
        self._requests = self._samples() if options.calibrates else []
        self._journal = Journal.open(options.folder, self._asked())
        self._of_samples: Advance = lambda _: None
        self._smoothing = self._smooth()

    def run(self, show: Bar) -> QuantizeReport:
        if not self._is_finished():
            with disk_errors(self._options.folder, self._progress):
                self._begin()
                works = [TrackedWork(f"quantising to {self._options.scheme}", self._bytes_before, of_bytes=True)]
                if self._requests:
                    works.append(TrackedWork("calibrating", sample_steps(self._architecture, self._requests)))
                with progress_bars(*works, show=show) as (advance, *of_samples):
                    self._of_samples = of_samples[0] if of_samples else self._of_samples
                    for shard, numbers in zip(self._shards, self._groups, strict=True):
                        self._write_shard(shard, [self._entries[number] for number in numbers], advance)
                report = self._report()
                self._finish(report)
        return self._report()

    def _is_finished(self) -> bool:
        """True if an earlier run came to its end, and all that it wrote is still there."""
        whole = all(shard.is_whole() for shard in self._shards)
        return self._journal.finished and whole and (self._options.folder / "config.json").is_file()

    def _decide(self) -> Plan:
        matrices = find_matrices(self._architecture, self._files, self._options.vision)
        taken = {matrix.source.name for matrix in matrices}
        floats = sorted(self._files.names - taken, key=_by_number)
        places = Places.of(self._architecture, self._files.names)
        head = places.locate("language.lm_head.weight").module  # listed even if the files have none
        embedding = places.locate("language.model.embed_tokens.weight").name
        linear = {
            name.removesuffix(".weight")
            for name in floats
            if name.endswith(".weight") and name != embedding and len(self._files.stored(name).get_shape()) == 2
        }
        rounding = Rounding.of(
            self._options,
            group_size(self._options, {matrix.module: matrix.inputs for matrix in matrices}),
            self._architecture.dtype,
        )
        return Plan(self._options, rounding, matrices, floats, sorted({head, *linear}, key=_by_number))

    def _smooth(self) -> Smoothing:
        """Return the smoothing of the norms that take part in it: none unless it is asked for."""
        matrices, strength = self._plan.matrices, self._options.smooth
        norms = [] if strength is None else find_smoothed(self._architecture, self._files, matrices)
        stages = list(dict.fromkeys(matrix.stage for matrix in matrices))
        note = self._journal.norms.__setitem__
        return Smoothing(norms, stages, self._files, strength or 0.0, self._measured, note)

    def _shapes(self, entry: Matrix | str) -> dict[str, TensorShape]:
        """Return the shapes of the tensors that the files will hold for a layer, or a tensor that stays in floats."""
        if isinstance(entry, str):
            kind = self._files.dtype(entry)
            if kind not in TORCH_TYPES:
                raise InvalidCheckpoint(f"The tensor {entry} is of type {kind}, known are {', '.join(TORCH_TYPES)}.")
            return {entry: TensorShape(TORCH_TYPES[kind], tuple(self._files.stored(entry).get_shape()))}
        tensors = self._format.encode(entry, self._plan.blank(entry), None)
        return {name: TensorShape.of(tensor) for name, tensor in tensors.items()}

    def _samples(self) -> list[Request]:
        options = self._options
        given = options.calibration
        samples = shipped_samples() if given is None else samples_of(Path(given).expanduser())
        preparer = self._inputs.plain_preparer(self._architecture.config.decoder.rope.trained_length)
        found = prepared(samples, preparer, options.calibration_samples)
        if options.vision and not any(request.images for request in found):
            raise InvalidConfig("calibration: --vision needs pictures, and there are only texts; add some.")
        return found

    def _asked(self) -> dict[str, Any]:
        source = {"source": source_digest(self._source), "version": __version__}
        return self._options.journal() | source | {"samples": samples_digest(self._requests)}

    def _begin(self) -> None:
        """Make the folder and its journal. Raises Unfinished where there is no room for what is to come."""
        folder = self._options.folder
        make_folder(folder)
        missing = sum(shard.nbytes for shard in self._shards if not shard.is_whole())
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise Unfinished(
                f"{folder}: {in_bytes(missing)} are still to be written, and {in_bytes(free)} are free. "
                f"{self._progress()}; make room, and the same command goes on."
            )
        self._journal.save()

    def _progress(self) -> str:
        done = sum(shard.is_whole() for shard in self._shards)
        return f"{done} of {len(self._shards)} files of weights are done"

    def _write_shard(self, shard: Shard, entries: Sequence[Matrix | str], advance: Callable[[int], None]) -> None:
        """Write one file of weights, unless it is whole already."""
        if all(map(self._is_known, entries)) and shard.is_whole():
            advance(sum(map(self._bytes_of, entries)))
            return
        with shard.writing() as writer:
            for entry in entries:
                if isinstance(entry, str):
                    writer.write(entry, self._smoothing.folded(entry, self._files.tensor(entry)))
                    self._files.give_back(entry)
                else:
                    self._write_matrix(entry, writer)
                advance(self._bytes_of(entry))
            self._journal.save()  # before the file gets its name, so the journal knows all about a file that is whole

    def _is_known(self, entry: Matrix | str) -> bool:
        """True if the journal has all that was measured of a layer, or of a tensor that stays in floats."""
        norm = self._smoothing.norm_of(entry)
        measured = isinstance(entry, str) or entry.module in self._journal.layers
        return measured and (norm is None or norm in self._journal.norms)

    def _write_matrix(self, matrix: Matrix, writer: ShardWriter) -> None:
        floats = self._smoothing.folded_matrix(matrix, matrix.read(self._files))
        rounded, self._journal.layers[matrix.module] = self._round(matrix, floats)
        bias = f"{matrix.module}.bias"
        added = self._files.tensor(bias) if bias in self._files.names else None
        for name, tensor in self._format.encode(matrix, rounded, added).items():
            writer.write(name, tensor)
        self._files.give_back(matrix.source.name)

    def _round(self, matrix: Matrix, floats: Tensor) -> tuple[RoundedMatrix, LayerError]:
        """Round a layer by the scheme, with its static scale or with error feedback where the scheme has them."""
        stored = matrix.source.name
        rounding, name = self._plan.rounding, f"{self._files.path(stored)}: the tensor {stored}"
        if self._options.scheme == W4A16 and self._options.error_feedback:
            moments = self._inputs_of(matrix).moments
            if moments:
                rounded = round_with_feedback(floats, moments, rounding, name)
                outputs = relative_output_error(floats, rounded, moments)
                return rounded, LayerError(relative_error(floats, rounded), outputs)
        rounded = round_matrix(floats, rounding, name)
        if self._plan.is_static(matrix):
            divisors = self._smoothing.factors_of(matrix)
            rounded = replace(rounded, static=self._inputs_of(matrix).static_rows(divisors))
        return rounded, LayerError(relative_error(floats, rounded))

    def _inputs_of(self, matrix: Matrix) -> MeasuredInputs:
        self._smoothing.reach(matrix.stage)  # it measures stages up to this one, and samples do not go back
        return self._measured(matrix.stage, matrix.reader)

    def _measured(self, stage: str, reader: str) -> MeasuredInputs:
        return self._activations.inputs_of(stage, reader)

    @cached_property
    def _activations(self) -> SampleActivations:
        moments = self._options.scheme == W4A16
        return SampleActivations(self._architecture, self._files, self._requests, moments, self._of_samples)

    def _finish(self, report: QuantizeReport) -> None:
        """Write the small files, config.json as the last: without it, nothing takes the folder for a model."""
        folder = self._options.folder
        if len(self._shards) > 1:
            places = {name: shard.path.name for shard in self._shards for name in shard.tensors}
            total = {"total_size": report.bytes_after}
            index = folder / f"{self._format.weights}.safetensors.index.json"
            write_json(index, {"metadata": total, "weight_map": places})
        for path in small_files(self._source.path):
            shutil.copyfile(path, folder / path.name)
        for name, values in self._format.description().items():
            write_json(folder / name, values)
        warn_of_missing_code(self._source.config, folder)
        write_text(folder / "README.md", model_card(report))
        self._journal.finished = True
        self._journal.save()
        write_json(folder / "config.json", config_when_merged(self._format.config(self._source.config)))

    def _report(self) -> QuantizeReport:
        after = sum(tensor.nbytes for shard in self._shards for tensor in shard.tensors.values())
        samples = about_samples(self._requests, shipped=self._options.calibration is None)
        return QuantizeReport(self._plan, self._journal.layers, self._journal.norms, self._bytes_before, after, samples)

    def _bytes_of(self, entry: Matrix | str) -> int:
        if isinstance(entry, Matrix):
            return entry.outputs * entry.inputs * TORCH_TYPES[self._files.dtype(entry.source.name)].itemsize
        return sum(tensor.nbytes for tensor in self._shapes(entry).values())

    @property
    def _bytes_before(self) -> int:
        return sum(map(self._bytes_of, self._entries))


def _check_source(options: QuantizeOptions, folder: CheckpointFolder) -> None:
    """Raise InvalidRequest for an output that is the source or in use, InvalidCheckpoint for a quantised source."""
    if options.out == DEMO:
        raise InvalidRequest(
            f"{DEMO} is the name of the model that ships, and `tilewise serve {DEMO}` would start that one: "
            f"name another one, such as {DEMO}-{options.scheme}."
        )
    out, source = options.folder.resolve(), folder.path.resolve()
    if not options.out or out == source or out in source.parents or source in out.parents:
        raise InvalidRequest(f"{options.out or 'OUT'} is the source {folder.path}, or in it: name a new folder.")
    check_folder(options.folder)
    method = method_of(folder)
    if method is not None:
        raise InvalidCheckpoint(
            f"{folder.path} is quantised already, by {method}: take the checkpoint in floats that it was made of."
        )


def _by_number(name: str) -> list[Any]:
    """Return a sort key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
