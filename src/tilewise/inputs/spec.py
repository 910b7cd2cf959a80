"""The inputs of a model, as the files of its checkpoint describe them: template, tiling, tokens a tile, end tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tilewise.errors import InvalidCheckpoint, did_you_mean
from tilewise.inputs.jinja import as_published
from tilewise.inputs.media.tiling import Tiling
from tilewise.inputs.templates import MARKS, TEMPLATES, THINK, THOUGHT, Template
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.inputs.tool_text import TOOL_FORMS
from tilewise.weights.folder import INTERN_S1, QIANFAN_OCR, SKYWORK_R1V, CheckpointFolder, Section, format_name

Id = TypeVar("Id")

# The -hf format names no template. Its checkpoints are of the 2.5, 3 and 3.5 generations, which share one, but for
# GPT-OSS.
_NATIVE_TEMPLATE = "internvl2_5"
_HARMONY_TEMPLATE = "internvl3_5_gpt_oss"
_OF_RELATIVES = {QIANFAN_OCR: "qianfan-ocr", INTERN_S1: "intern-s1"}
_OF_1_5 = {"internlm2-chat": "internlm2-chat-v1-5", "phi3-chat": "phi3-chat-v1-5"}
"""InternVL 1.5's templates, by the names they share with InternVL2's, which have another system text."""
_1_5 = re.compile(r"internvl[-_]chat.*v1[-_.]5", re.IGNORECASE)
_DEEPSEEK_USER = "<｜User｜>"
_STARTS_BY_DEFAULT = (
    "InternLM2Tokenizer", "InternLM2TokenizerFast", "InternLM3Tokenizer", "LlamaTokenizer", "LlamaTokenizerFast"
)  # fmt: skip
_START = "<s>"  # of these classes, when the files name no other


@dataclass(frozen=True, slots=True)
class HeaderIds:
    """A template's `Header` in token ids."""

    starts: frozenset[int]
    end: int


@dataclass(frozen=True)
class InputSpec:
    """Everything `prepare` has to know of a model."""

    template: Template
    tiling: Tiling
    tokens_per_tile: int
    end_ids: frozenset[int]
    start_id: int | None = None
    """Id of the token before every prompt, once (InternLM, Llama); None for most models."""
    header: HeaderIds | None = None

    @classmethod
    def of(cls, folder: CheckpointFolder, tokenizer: Tokenizer, processor: dict[str, Any] | None = None) -> InputSpec:
        """Read the files of a checkpoint; `processor` are `mm_processor_kwargs` for all requests.

        Raises InvalidCheckpoint, also for a model that is not of the family.
        """
        format_name(folder)
        template = _template(folder, tokenizer).with_marks(m for m in MARKS if tokenizer.find_id(m) is not None)
        if template.tools is not None and tokenizer.find_id("<|action_start|>") is not None:
            template = template.with_tools(TOOL_FORMS["internlm"])  # its language model was trained with those tokens
        tiling = tiling_of(folder).override(processor)
        ends = frozenset[int]().union(*end_ids(folder, template, tokenizer).values())
        start, header = _start_id(folder, tokenizer), _header_ids(template, tokenizer)
        return cls(template, tiling, tokens_per_tile(folder), ends, start, header)

    def started(self, ids: Sequence[Id | int]) -> list[Id | int]:
        """Return ids behind the start token, if the model has one and they do not begin with it."""
        start = self.start_id
        return [*ids] if start is None or [*ids[:1]] == [start] else [start, *ids]


def tokens_per_tile(folder: CheckpointFolder) -> int:
    """Return the rows of a tile after pixel shuffle: (image size / patch size * downsample ratio) squared."""
    size = _tile_size(folder)
    ratio = folder.config.number("downsample_ratio", 0.5)
    if not 0 < ratio <= 1:
        raise InvalidCheckpoint(
            f"{folder.config.where}: downsample_ratio must be above 0 and at most 1, found {ratio}."
        )
    return int(size // folder.vision.whole("patch_size", 14) * ratio) ** 2


def _tile_size(folder: CheckpointFolder) -> int:
    if "force_image_size" in folder.config.values:
        return folder.config.whole("force_image_size")
    return folder.vision.whole("image_size", 448)


def _template(folder: CheckpointFolder, tokenizer: Tokenizer) -> Template:
    """Return the checkpoint's template, as far as it was trained.

    Reasoning needs `<think>` as a token, as Qwen3's vocabulary has it. The template of the -hf format loops over the
    parts of a message.
    """
    template = _named_template(folder, tokenizer)
    if folder.architecture in (QIANFAN_OCR, SKYWORK_R1V):  # which publish it as Jinja alone
        template = as_published(template, folder)
    if None in map(tokenizer.find_id, (THINK, THOUGHT)):
        template = replace(template, thinking=None, thinks=False, think_opening="")
    return template if _is_original(folder) else replace(template, order="as looped")


def _is_original(folder: CheckpointFolder) -> bool:
    """True for OpenGVLab's own format, False for that of transformers."""
    return "llm_config" in folder.config.values


def _named_template(folder: CheckpointFolder, tokenizer: Tokenizer) -> Template:
    config, language = folder.config, folder.config.get("text_config", {})
    harmony = isinstance(language, dict) and language.get("model_type") == "gpt_oss"
    default = _OF_RELATIVES.get(folder.architecture, _HARMONY_TEMPLATE if harmony else _NATIVE_TEMPLATE)
    name = config.get("template", default)
    if not isinstance(name, str):
        raise InvalidCheckpoint(f"{config.where}: template must be the name of one, found {name!r:.80}.")
    if folder.architecture == SKYWORK_R1V and name not in TEMPLATES:  # one language model in R1V, others since
        name = "deepseek-r1" if tokenizer.find_id(_DEEPSEEK_USER) is not None else _NATIVE_TEMPLATE
    if name in _OF_1_5 and _is_1_5(folder):
        name = _OF_1_5[name]
    if name not in TEMPLATES:
        raise InvalidCheckpoint(
            f"{config.where}: template is {name!r:.80}, known are {', '.join(TEMPLATES)}."
            f"{did_you_mean(str(name), TEMPLATES)}"
        )
    return TEMPLATES[name]


def _is_1_5(folder: CheckpointFolder) -> bool:
    """Tell InternVL-Chat-V1-5 and the Mini-InternVLs of its time from later ones, by nothing but their names."""
    return any(_1_5.search(name) for name in (str(folder.config.get("_name_or_path", "")), *folder.path.parts))


def tiling_of(folder: CheckpointFolder) -> Tiling:
    """Return the tiling of a checkpoint.

    Original checkpoints have it in config.json, `-hf` ones in preprocessor_config.json, Qianfan-OCR in both. Absent
    keys take the defaults of the format's own configuration class.
    """
    config, size = folder.config, _tile_size(folder)
    if _is_original(folder):
        return Tiling(
            tile_size=size,
            min_tiles=config.whole("min_dynamic_patch", 1),
            max_tiles=config.whole("max_dynamic_patch", 6),
            thumbnail=bool(config.get("use_thumbnail", False)),
            dynamic=bool(config.get("dynamic_image_size", False)),
        )
    processor = folder.optional("preprocessor_config.json")
    said = config if folder.architecture == QIANFAN_OCR else Section({}, config.where)
    return Tiling(
        tile_size=size,
        min_tiles=said.whole("min_dynamic_patch", processor.whole("min_patches", 1)),
        max_tiles=said.whole("max_dynamic_patch", processor.whole("max_patches", 12)),
        thumbnail=bool(said.get("use_thumbnail", processor.get("use_thumbnail", True))),
        dynamic=bool(said.get("dynamic_image_size", processor.get("crop_to_patches", True))),
    )


def end_ids(folder: CheckpointFolder, template: Template, tokenizer: Tokenizer) -> dict[str, set[int]]:
    """Return end tokens by what names them; llm_config is not asked, its eos is known to be wrong in released files."""
    return {
        f"template {template.name}": _ids_of(template.stop_tokens, tokenizer),
        "tokenizer": _ids_of(("<|endoftext|>",), tokenizer),
        "generation_config.json": _id_set(folder.optional("generation_config.json"), "eos_token_id"),
        "config.json": _id_set(folder.config, "eos_token_id"),
    }


def _ids_of(tokens: tuple[str, ...], tokenizer: Tokenizer) -> set[int]:
    return {found for token in tokens if (found := tokenizer.find_id(token)) is not None}


def _start_id(folder: CheckpointFolder, tokenizer: Tokenizer) -> int | None:
    """Return the id that the tokenizer would put first; None for none.

    Its config decides, else what its class does, else its definition.
    """
    config = folder.optional("tokenizer_config.json")
    by_class = config.get("tokenizer_class") in _STARTS_BY_DEFAULT
    starts = config.get("add_bos_token", True if by_class else None)
    if starts is None:
        return tokenizer.start_id
    name = _start_token(config, folder.optional("special_tokens_map.json"), _START if by_class else None)
    return tokenizer.special_id(name) if starts and name is not None else None


def _header_ids(template: Template, tokenizer: Tokenizer) -> HeaderIds | None:
    if template.header is None:
        return None
    starts = frozenset(map(tokenizer.special_id, template.header.starts))
    return HeaderIds(starts, tokenizer.special_id(template.header.end))


def _start_token(config: Section, named: Section, default: str | None) -> str | None:
    """Return the name of the start token; null in the config means that there is none."""
    token = config.values.get("bos_token", named.get("bos_token", default))
    name = token.get("content", token) if isinstance(token, dict) else token
    if name is not None and not isinstance(name, str):
        raise InvalidCheckpoint(f"{config.where}: bos_token must be a token or null, found {token!r:.80}.")
    return name


def _id_set(config: Section, key: str) -> set[int]:
    """Return the ids under a key, which has a token id, a list of them, or nothing."""
    value = config.get(key, [])
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise InvalidCheckpoint(f"{config.where}: {key} must be a token id or a list of them, found {value!r:.80}.")
    return set(ids)
