"""The prompts of a model, known before it is loaded: from the small files of a checkpoint, without a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tilewise.inputs.images import Tiling
from tilewise.inputs.jinja import JinjaReport, compare_templates
from tilewise.inputs.prepare import InputOptions, Preparer
from tilewise.inputs.spec import InputSpec, end_ids
from tilewise.inputs.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Tokenizer
from tilewise.inputs.worked_example import Conversation, Example, build_example
from tilewise.weights.folder import NATIVE, ORIGINAL, CheckpointFolder, format_name

_TOWERS = {(1024, 24): "InternViT-300M", (3200, 45): "InternViT-6B"}


@dataclass(frozen=True)
class VisionSize:
    name: str
    """The released tower of this size, or just InternViT."""
    hidden_size: int
    layers: int


@dataclass(frozen=True)
class TemplateChoice:
    name: str
    source: str
    """The key of config.json that names it, or why it was taken."""
    system_text: str
    """The template's own system text, which a system message replaces."""


@dataclass(frozen=True)
class NamedToken:
    id: int
    text: str


@dataclass(frozen=True)
class StopToken:
    id: int
    text: str | None
    """Text of the token; None = the tokenizer has no such id."""
    sources: tuple[str, ...]
    """Names of what lists the token: the template, the tokenizer, generation_config.json, config.json."""


@dataclass(frozen=True)
class SpecialTokens:
    start: NamedToken | None
    """The token before every prompt; None for most models."""
    image: tuple[NamedToken, ...]
    stops: tuple[StopToken, ...]


@dataclass(frozen=True)
class VocabularySizes:
    tokenizer_size: int
    """One more than the tokenizer's highest id."""
    rows: int
    """Rows of the embedding table, by config.json."""


@dataclass(frozen=True)
class Flash:
    """The router of a -Flash checkpoint, which gives some tiles fewer tokens, once it has seen them."""

    relative_threshold: float | None
    absolute_threshold: float | None
    compressed_tokens_per_tile: int


@dataclass(frozen=True)
class Inspection:
    """A checkpoint as Tilewise will use it; `warnings` and `jinja` say where its files disagree with that."""

    model: str
    path: str
    format: str
    language: str
    quantization: str | None
    """The method by which the weights are quantised; None = floats."""
    vision: VisionSize
    template: TemplateChoice
    tokens: SpecialTokens
    tiling: Tiling
    tokens_per_tile: int
    flash: Flash | None
    context_length: int
    vocabulary: VocabularySizes
    warnings: tuple[str, ...]
    example: Example
    jinja: tuple[JinjaReport, ...]
    """One report for each different template that the checkpoint carries."""

    @property
    def differs(self) -> bool:
        """True if an engine that follows one of the checkpoint's own templates would make another prompt."""
        return any(report.differs for report in self.jinja)


def inspect_checkpoint(
    model: str,
    folder: CheckpointFolder,
    conversation: Conversation,
    options: InputOptions = InputOptions(),
    processor: dict[str, Any] | None = None,
) -> Inspection:
    """Read a checkpoint, and work the conversation out as an example. `processor` are `mm_processor_kwargs`.

    Raises InvalidCheckpoint for what the engine would refuse as well, InvalidRequest for a wrong conversation.
    """
    format_ = format_name(folder)
    tokenizer = Tokenizer.from_folder(folder.path)
    spec = InputSpec.of(folder, tokenizer, processor)
    tokens = _special_tokens(folder, spec, tokenizer)
    context = folder.text.whole("max_position_embeddings")
    vocabulary = VocabularySizes(tokenizer.vocab_size, folder.text.whole("vocab_size"))
    example = build_example(Preparer(spec, tokenizer, context, options), conversation)
    doubts = (*_vocabulary_doubts(folder, tokens, vocabulary), *_stop_doubts(spec, tokenizer), *_fit(example, context))
    return Inspection(
        model=model,
        path=str(folder.path),
        format=format_,
        quantization=folder.quantization,
        language=folder.text.first("architectures") or str(folder.text.get("model_type", "unknown")),
        vision=_vision(folder),
        template=_template(folder, spec, format_),
        tokens=tokens,
        tiling=spec.tiling,
        tokens_per_tile=spec.tokens_per_tile,
        flash=_flash(folder, spec.tokens_per_tile),
        context_length=context,
        vocabulary=vocabulary,
        warnings=doubts,
        example=example,
        jinja=compare_templates(folder, spec.template, tokens.start.text if tokens.start else ""),
    )


def _vision(folder: CheckpointFolder) -> VisionSize:
    hidden, layers = folder.vision.whole("hidden_size"), folder.vision.whole("num_hidden_layers")
    return VisionSize(_TOWERS.get((hidden, layers), "InternViT"), hidden, layers)


def _template(folder: CheckpointFolder, spec: InputSpec, format_: str) -> TemplateChoice:
    named = folder.config.get("template")
    if named == spec.template.name:
        source = "config.json: template"
    elif folder.architecture not in (ORIGINAL, NATIVE):
        source = f"that of {folder.architecture}"
    elif named is not None:
        source = f"config.json: template is {named}, of InternVL 1.5 by the checkpoint's name"
    else:
        source = f"default of the {format_} format, config.json names none"
    return TemplateChoice(spec.template.name, source, spec.template.system)


def _special_tokens(folder: CheckpointFolder, spec: InputSpec, tokenizer: Tokenizer) -> SpecialTokens:
    start = None if spec.start_id is None else NamedToken(spec.start_id, tokenizer.token_text(spec.start_id) or "")
    image = tuple(NamedToken(tokenizer.special_id(name), name) for name in (IMAGE_START, IMAGE_END, IMAGE_CONTEXT))
    by_source = end_ids(folder, spec.template, tokenizer)
    stops = tuple(
        StopToken(stop, tokenizer.token_text(stop), tuple(source for source, ids in by_source.items() if stop in ids))
        for stop in sorted(spec.end_ids)
    )
    return SpecialTokens(start, image, stops)


def _flash(folder: CheckpointFolder, tokens_per_tile: int) -> Flash | None:
    """Return the router's settings; None if there is none.

    A compressed tile is shuffled in blocks of twice the side, hence a quarter of the tokens.
    """
    config = folder.config
    if not config.get("flash_mode"):
        return None
    relative, absolute = (
        float(config.number(key)) if config.get(key) is not None else None
        for key in ("flash_relative_threshold", "flash_absolute_threshold")
    )
    return Flash(relative, absolute, tokens_per_tile // 4)


def _vocabulary_doubts(folder: CheckpointFolder, tokens: SpecialTokens, vocabulary: VocabularySizes) -> Iterator[str]:
    context = tokens.image[-1]
    if vocabulary.tokenizer_size > vocabulary.rows:
        yield (
            f"The tokenizer has ids up to {vocabulary.tokenizer_size - 1}, vocab_size in config.json is "
            f"{vocabulary.rows}: tokenizer and config are of different models"
            + (f", and {context.text} has no row, which the engine refuses." if context.id >= vocabulary.rows else ".")
        )
    listed = folder.config.get("image_token_id")
    if listed is not None and listed != context.id:
        yield (
            f"image_token_id in config.json is {listed}, the tokenizer says {context.id} for {context.text}: Tilewise "
            "goes by the tokenizer, engines that go by config.json will not find the pictures."
        )


def _stop_doubts(spec: InputSpec, tokenizer: Tokenizer) -> Iterator[str]:
    for token in spec.template.stop_tokens:
        if tokenizer.find_id(token) is None:
            yield f"The template {spec.template.name} ends answers with {token}, which the tokenizer does not have."


def _fit(example: Example, context: int) -> Iterator[str]:
    if example.total_tokens >= context:
        yield (
            f"The example has {example.total_tokens} tokens, the context holds {context} with at least one for the "
            "answer: use fewer pictures or a smaller max_dynamic_patch."
        )
