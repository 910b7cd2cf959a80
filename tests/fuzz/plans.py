"""Targets: what people write on command lines and in programs: sizes of plans, options, forms of answers, templates."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.target import JSON, NUMBERS, WORDS, altered, of_values, refusing
from tests.inputs.vocabulary import CONTROL, small_tokenizer
from tests.plan.sizes import INTERNVL3_1B
from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig, InvalidRequest
from tilewise.inputs.grammar import Grammars
from tilewise.inputs.pieces import Message, Special, Text
from tilewise.inputs.prepared_schema import prepare_schema, relaxed
from tilewise.inputs.schema import unknown_keywords
from tilewise.inputs.templates import TEMPLATES
from tilewise.plan import resolve
from tilewise.plan.memory import DeviceFacts
from tilewise.plan.request import read_devices
from tilewise.sampling_params import SamplingParams
from tilewise.structured_outputs import StructuredOutputsParams
from tilewise.units import GIB, in_bytes, read_amount, read_length

_AMOUNTS = st.lists(
    st.sampled_from(
        ["2", "x", "16", "GiB", "GB", "T", "H100", "cpu", ":", "-1", ".5", "9" * 400, "1" * 5000, "×", "K", "m", "auto"]
    )
    | WORDS,
    max_size=5,
).map(lambda parts: "".join(parts)[:6000])


@of_values(st.tuples(_AMOUNTS, st.none() | _AMOUNTS, st.none() | _AMOUNTS), examples=80)
def device_text(value: tuple[str, str | None, str | None]) -> None:
    """Devices of a plan are read, with speeds above 0, or refused."""
    text, bandwidth, tflops = value
    with refusing(InvalidConfig):
        found = read_devices(text, 8 * GIB, bandwidth, tflops)
        assert found.count >= 1
        assert found.device.memory > 0
        assert found.device.shared_by(2).memory <= found.device.memory < 2**100
        assert all(rate is None or 0 < rate < 1e25 for rate in (found.device.bandwidth, found.device.floats))


@of_values(_AMOUNTS, examples=80)
def amount_text(text: str) -> None:
    """An amount is a whole number, or a ValueError."""
    for read in (read_amount, read_length):
        try:
            in_bytes(read(text))
        except ValueError:
            continue


_SIZES = st.integers(1, 2**20) | st.sampled_from([1, 2, 16, 2**31, 2**63])
_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_model_len": _SIZES | st.just(-1),
        "max_num_seqs": _SIZES,
        "max_num_batched_tokens": _SIZES,
        "block_size": st.sampled_from([1, 8, 16, 32, 48]),
        "gpu_memory_utilization": st.floats(0.01, 1),
        "encoder_cache_gb": st.floats(0, 64),
        "kv_cache_memory_bytes": _SIZES,
        "num_gpu_blocks_override": _SIZES,
        "kv_cache_dtype": st.sampled_from(["auto", "int8", "fp8"]),
        "enforce_eager": st.booleans(),
        "max_graph_size": _SIZES,
    },
)
_FACTS = st.builds(
    DeviceFacts,
    free_bytes=st.integers(0, 64 * GIB),
    total_bytes=st.integers(64 * GIB, 128 * GIB),
    utilization=st.none() | st.floats(0.1, 1),
    captures_graphs=st.booleans(),
    graph_sizes=st.sampled_from([(), (1, 2, 4, 8)]),
    tile_batches=st.sampled_from([(1,), (8, 4, 2, 1)]),
)


@of_values(st.tuples(_OPTIONS, _FACTS), examples=80)
def memory_plan(value: tuple[dict[str, Any], DeviceFacts]) -> None:
    """A plan fits in the memory that there is, and holds one sequence of full length; or it is refused."""
    options, device = value
    with refusing(InvalidConfig):
        found = resolve(EngineConfig.of(**options), INTERNVL3_1B, device)
        limits = found.limits
        assert (limits.num_blocks - 1) * limits.block_size >= limits.max_model_len
        assert limits.max_model_len >= 1
        asked = {"kv_cache_memory_bytes", "num_gpu_blocks_override", "encoder_cache_gb"}
        if not asked & options.keys():
            kept = (limits.num_blocks - 1) * limits.block_size * INTERNVL3_1B.kv_bytes_per_token
            assert INTERNVL3_1B.weight_bytes + kept <= device.free_bytes


_NAMES = [field.name for field in fields(EngineConfig)]


@of_values(st.dictionaries(st.sampled_from(_NAMES) | WORDS, JSON, max_size=4), examples=80)
def engine_options(options: dict[str, Any]) -> None:
    """Options of any type make a configuration, or are refused."""
    with refusing(InvalidConfig, InvalidRequest):
        EngineConfig.of(**options)


_SAMPLING = [field.name for field in fields(SamplingParams)]


@of_values(st.dictionaries(st.sampled_from(_SAMPLING) | WORDS, JSON | NUMBERS, max_size=4), examples=80)
def sampling_options(options: dict[str, Any]) -> None:
    """Options of any type make sampling options that can be copied, or are refused."""
    with refusing(InvalidRequest, InvalidConfig):
        SamplingParams(**options).clone()


_SCHEMAS: list[Any] = [
    {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 6, "pattern": "^a|b$"}, "b": {"$ref": "#/$defs/c"}},
        "required": ["a"],
        "$defs": {"c": {"anyOf": [{"type": "integer", "minimum": 0}, {"enum": ["x", None, 1.5]}, {"$ref": "#"}]}},
    },
    {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": False}, "additionalProperties": True}]},
    {"type": "array", "prefixItems": [{"const": "无"}], "items": {"not": {"type": "null"}}, "uniqueItems": True},
    {
        "properties": {"a": {"nullable": True, "type": "number", "multipleOf": 0.5}},
        "patternProperties": {"^x": {"enum": ["x"]}},
        "dependentRequired": {"a": ["b"]},
        "dependentSchemas": {"a": {"properties": {"c": {}}}},
        "dependencies": {"a": {"required": ["d"]}},
        "propertyNames": {"minLength": 1},
        "minProperties": 1,
        "maxProperties": 4,
        "unevaluatedProperties": False,
        "if": {"required": ["a"]},
        "then": {"properties": {"e": {}}},
        "else": False,
        "$ref": "#/definitions/f",
        "allOf": [{"oneOf": [{"properties": {"g": {}}}, {"$ref": "#/definitions/f"}]}],
        "definitions": {"f": {"properties": {"h": {"contains": {"type": "string"}, "minContains": 1, "maxItems": 3}}}},
    },
]


@of_values(altered(_SCHEMAS), examples=80)
def schema(value: Any) -> None:
    """Any JSON as a schema is prepared to a schema, or refused."""
    with refusing(InvalidRequest):
        if isinstance(value, dict | bool):
            unknown_keywords(value, "the schema")
            json.dumps(prepare_schema(value, closed=True).followed)


_PATTERNS = st.lists(
    st.sampled_from(
        [
            *(
                r"\d",
                r"\b",
                "(?=",
                "(?<!",
                "(?:",
                "(",
                ")",
                "[",
                "]",
                "^",
                "$",
                r"\1",
                r"\k<a>",
                "(?P<a>",
                "{2,3}",
                "*",
            ),
            *("+?", "|", "a", "图", "\\", ".", "-", "(?i)", r"\p{L}", "{1,99999}", "[^"),
        ]
    ),
    max_size=10,
).map("".join)


@of_values(_PATTERNS | WORDS, examples=80)
def pattern(text: str) -> None:
    """What is left of a pattern is no longer, and has nothing more to be taken out."""
    kept, _ = relaxed(text)
    if kept.count(r"[\s\S]*") == text.count(r"[\s\S]*"):
        assert len(kept) <= len(text)


@cache
def _grammars() -> Grammars:
    tokenizer = small_tokenizer()
    return Grammars(tokenizer, [tokenizer.special_id("<|im_end|>")])


_TAG = {"structures": [{"begin": "<a>", "schema": {"type": "integer"}, "end": "</a>"}], "triggers": ["<a"]}
_FORMS = st.one_of(
    st.fixed_dictionaries({"json": altered(_SCHEMAS, most=1)}),
    st.fixed_dictionaries({"regex": _PATTERNS}),
    st.fixed_dictionaries({"choice": st.lists(WORDS, max_size=3)}),
    st.fixed_dictionaries({"grammar": st.sampled_from(['start: "a" | start "b"', 'root ::= "x" [a-z]+']) | WORDS}),
    st.fixed_dictionaries({"structural_tag": altered([_TAG], most=1)}),
)


@of_values(_FORMS, examples=8)
def grammar(options: dict[str, Any]) -> None:
    """A form of answers is compiled and followed for a few tokens, or refused; a process of its own tries it first."""
    with refusing(InvalidRequest):
        compiled = _grammars().compile(StructuredOutputsParams(**options))
        matcher = compiled.start(ignore_eos=False)
        assert any(matcher.masks()[0])


_SAID = st.lists(st.sampled_from([*CONTROL, "<|end|>", "<image>", "<video>", "hello", "\n", " ", "<think>", "{}"]),
                 min_size=1, max_size=4).map("".join)  # fmt: skip
_TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), _SAID), min_size=1, max_size=4)


@of_values(
    st.tuples(st.sampled_from(sorted(TEMPLATES)), _TURNS, st.booleans(), st.sampled_from(["open", "continue", "end"])),
    examples=80,
)
def template(value: tuple[str, list[tuple[str, str]], bool, Any]) -> None:
    """The control tokens of a prompt depend on the turns, and not on what is said in them, which is there as text."""
    name, turns, thinking, ending = value
    found = TEMPLATES[name]
    with refusing(InvalidRequest):
        said = found.render([Message(role, text) for role, text in turns], thinking, (), ending)
        plain = found.render([Message(role, "x") for role, _ in turns], thinking, (), ending)
        assert [piece for piece in said if isinstance(piece, Special)] == [
            piece for piece in plain if isinstance(piece, Special)
        ]
        whole = "".join(piece.text for piece in said if isinstance(piece, Text))
        assert all(text.strip() in whole for _, text in turns)
