"""The prompts of a model, known before it is loaded: from the small files of a checkpoint, without a weight.

An example is worked out part by part, with its tokens counted. Sizes stand in for pictures, so nothing is decoded or
cut; the ids are those that `Preparer.chat` makes.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tilewise.inputs.jinja import JinjaReport, compare_templates
from tilewise.inputs.media.images import ImageLimits, check_size
from tilewise.inputs.media.tiling import Tiling, choose_grid, count_tiles
from tilewise.inputs.model_inputs import ModelInputs
from tilewise.inputs.options import tilings
from tilewise.inputs.pieces import ImageSlot, Message, Part, Piece, Special, Text, join_text, to_string
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.spec import InputSpec, end_ids
from tilewise.inputs.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Tokenizer
from tilewise.resize import Size
from tilewise.types import Grid
from tilewise.weights.folder import NATIVE, ORIGINAL, CheckpointFolder, format_name

PartKind = Literal["start", "header", "text", "image marks", "image rows", "closing", "opening"]
_TOWERS = {(1024, 24): "InternViT-300M", (3200, 45): "InternViT-6B"}


@dataclass(frozen=True)
class Conversation:
    """A conversation, with a size for each picture and a list of sizes for each video, in the order of the messages."""

    messages: Sequence[Message]
    media: Sequence[Size | list[Size]] = ()
    thinking: bool | None = None
    """True or False as a request may ask for reasoning; None = as the template does."""


@dataclass(frozen=True)
class PromptPart:
    """A stretch of the prompt. All texts together are the prompt; the rows of a picture have no text."""

    kind: PartKind
    turn: int
    role: str
    text: str
    tokens: int


@dataclass(frozen=True)
class PictureTiles:
    """The tiles into which a picture, or a frame of a video, is cut: the grid's tiles, then the thumbnail."""

    size: Size
    grid: Grid
    thumbnail: bool
    tiles: int
    tokens: int
    """Prompt tokens of the tiles' rows, without `<img>` and `</img>`."""


@dataclass(frozen=True)
class Run:
    """A token id that comes several times in a row."""

    id: int
    count: int


@dataclass(frozen=True)
class Example:
    prompt: str
    """The prompt as people write it: special tokens by name, `<image>` for a picture."""
    parts: tuple[PromptPart, ...]
    pictures: tuple[PictureTiles, ...]
    ids: tuple[int | Run, ...]
    total_tokens: int


def build_example(prepare: Preparer, conversation: Conversation) -> Example:
    """Work out the prompt of a conversation.

    Raises what `Preparer.chat` would, but for the length: a prompt that is too long can still be looked at.
    """
    template = prepare.spec.template
    parts = template.parts(conversation.messages, template.thinks_if(conversation.thinking))
    pieces = [piece for part in parts for piece in part.pieces]
    joined = join_text(pieces)
    pictures = tuple(_cut(prepare, conversation.media))
    rows = [picture.tokens for picture in pictures]
    ids = tuple(_with_pictures(prepare.chat_ids(joined), rows, prepare.tokenizer))
    counted = (*_start_part(prepare, joined), *_counted(parts, count_pieces(pieces, rows, prepare.tokenizer)))
    return Example(
        prompt="".join(part.text for part in counted),
        parts=counted,
        pictures=pictures,
        ids=ids,
        total_tokens=sum(item.count if isinstance(item, Run) else 1 for item in ids),
    )


def count_pieces(pieces: Sequence[Piece], rows: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the number of tokens of each piece; `rows` are those of each picture.

    Neighbouring texts are encoded as one, as in the prompt, and a token that reaches over several counts where it ends.
    """
    counts = [int(isinstance(piece, Special)) for piece in pieces]
    for number, piece in enumerate(pieces):
        if isinstance(piece, ImageSlot):
            counts[number] = rows[piece.index] + 2  # and `<img>` and `</img>`
    joined, place = join_text(pieces), 0
    for is_text, group in itertools.groupby(range(len(pieces)), lambda number: isinstance(pieces[number], Text)):
        numbers = list(group)
        borders = list(itertools.accumulate(len(to_string([pieces[number]])) for number in numbers))
        if is_text and borders[-1]:
            for end in tokenizer.token_ends(joined, place):
                counts[numbers[bisect_left(borders, end)]] += 1
            place += 1
        elif not is_text:
            place += len(numbers)
    return counts


def _start_part(prepare: Preparer, pieces: Sequence[Piece]) -> Iterator[PromptPart]:
    """Yield the start token, unless the template writes it itself."""
    start = prepare.spec.start_id
    token = None if start is None else Special(prepare.tokenizer.token_text(start) or "")
    if token is not None and [*pieces[:1]] != [token]:
        yield PromptPart("start", 0, "system", token.token, 1)


def _counted(parts: Sequence[Part], counts: Sequence[int]) -> Iterator[PromptPart]:
    tokens = iter(counts)
    for part in parts:
        if part.kind != "body":
            total = sum(itertools.islice(tokens, len(part.pieces)))
            yield PromptPart(part.kind, part.turn, part.role, to_string(part.pieces), total)
            continue
        for piece, count in zip(part.pieces, tokens, strict=False):
            text = to_string([piece])
            if isinstance(piece, ImageSlot):
                yield PromptPart("image marks", part.turn, part.role, text, 2)
                yield PromptPart("image rows", part.turn, part.role, "", count - 2)
            elif text:
                yield PromptPart("text", part.turn, part.role, text, count)


def _cut(prepare: Preparer, media: Sequence[Size | list[Size]]) -> Iterator[PictureTiles]:
    pictures = sum(isinstance(item, tuple) for item in media)
    of_picture, of_frame = tilings(prepare.spec.tiling, pictures, prepare.config)
    for item in media:
        tiling = of_picture if isinstance(item, tuple) else of_frame
        for size in [item] if isinstance(item, tuple) else item:
            check_size(size, ImageLimits.of(prepare.config))
            grid = choose_grid(*size, tiling)
            tiles = count_tiles(grid, tiling.thumbnail)
            has_thumbnail = tiles > grid[0] * grid[1]
            yield PictureTiles(size, grid, has_thumbnail, tiles, tiles * prepare.spec.tokens_per_tile)


def _with_pictures(ids: Sequence[int | ImageSlot], rows: Sequence[int], tokenizer: Tokenizer) -> Iterator[int | Run]:
    start, context, end = map(tokenizer.special_id, (IMAGE_START, IMAGE_CONTEXT, IMAGE_END))
    for item in ids:
        if isinstance(item, ImageSlot):
            yield from (start, Run(context, rows[item.index]), end)
        else:
            yield item


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


def inspect_checkpoint(inputs: ModelInputs, conversation: Conversation) -> Inspection:
    """Say what a checkpoint's files come to, and work the conversation out as an example.

    Raises InvalidCheckpoint for what the engine would refuse as well, InvalidRequest for a wrong conversation.
    """
    folder, spec, tokenizer = inputs.checkpoint.folder, inputs.spec, inputs.tokenizer
    tokens, format_ = _special_tokens(folder, spec, tokenizer), format_name(folder)
    context = folder.text.whole("max_position_embeddings")
    vocabulary = VocabularySizes(tokenizer.vocab_size, folder.text.whole("vocab_size"))
    tower = folder.vision.whole("hidden_size"), folder.vision.whole("num_hidden_layers")
    example = build_example(inputs.plain_preparer(context), conversation)
    doubts = (*_vocabulary_doubts(folder, tokens, vocabulary), *_prompt_doubts(spec, tokenizer, example, context))
    return Inspection(
        model=inputs.config.model,
        path=str(folder.path),
        format=format_,
        quantization=folder.quantization,
        language=folder.text.first("architectures") or str(folder.text.get("model_type", "unknown")),
        vision=VisionSize(_TOWERS.get(tower, "InternViT"), *tower),
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
    """Return the router's settings. It shuffles a tile in blocks of twice the side, hence a quarter of the tokens."""
    config = folder.config
    if not config.get("flash_mode"):
        return None
    keys = ("flash_relative_threshold", "flash_absolute_threshold")
    relative, absolute = (None if config.get(key) is None else float(config.number(key)) for key in keys)
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


def _prompt_doubts(spec: InputSpec, tokenizer: Tokenizer, example: Example, context: int) -> Iterator[str]:
    for token in spec.template.stop_tokens:
        if tokenizer.find_id(token) is None:
            yield f"The template {spec.template.name} ends answers with {token}, which the tokenizer does not have."
    if example.total_tokens >= context:
        yield (
            f"The example has {example.total_tokens} tokens, the context holds {context} with at least one for the "
            "answer: use fewer pictures or a smaller max_dynamic_patch."
        )
