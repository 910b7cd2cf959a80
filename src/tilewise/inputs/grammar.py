"""StructuredOutputsParams -> a grammar that sequences can follow: checked here, before the engine sees the request.

llguidance follows it, and not xgrammar, because it needs neither torch nor triton, computes a mask in microseconds
without tables for a whole schema, and puts a limit on every size that a caller controls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tilewise.engine.grammar import CompiledGrammar
from tilewise.errors import InvalidRequest
from tilewise.inputs import confined
from tilewise.sampling_params import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from tilewise.inputs.tokenizer import Tokenizer

MAX_CHARACTERS = {"json": 65_536, "grammar": 65_536, "regex": 8_192, "choice": 65_536}
MAX_NESTING = 100
SECONDS = 2  # to compile; real schemas take milliseconds
_REMEMBERED = 64
_TRIED_TOKENS = 4
_UNFULFILLED = "NoExtension"  # what the library says when the first token can be nothing
_SOURCE_LINE = re.compile(r"\s+\d+ \| ")
_PLACE = re.compile(r"^at \d+\(\d+\): ")


class Grammars:
    """Compiles for one vocabulary, and remembers the last few."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Iterable[int], checked_before: bool = False) -> None:
        """`checked_before` spares the process of its own: another instance has compiled all that will come."""
        self._tokenizer = tokenizer
        self._source_of = _source if checked_before else _checked_source
        self._end_ids = frozenset(token_id for token_id in end_ids if token_id < tokenizer.vocab_size)
        self._compiled = lru_cache(_REMEMBERED)(self._compile)

    def compile(self, wanted: StructuredOutputsParams) -> CompiledGrammar:
        """Raises InvalidRequest naming what is wrong with it, within seconds whatever a caller writes."""
        form, text = _text_of(wanted)
        limit = MAX_CHARACTERS[form]
        if len(text) > limit:
            raise InvalidRequest(
                f"structured_outputs.{form} has {len(text)} characters, at most {limit} are allowed: make it smaller."
            )
        return self._compiled(form, text, _json_options(wanted) if form == "json" else "{}")

    def _compile(self, form: str, text: str, options: str) -> CompiledGrammar:
        from llguidance import LLMatcher

        from tilewise.inputs.grammar_source import parser_limits

        source = self._source_of(form, text, options)
        parser = LLMatcher(self._vocabulary, source, log_level=0, limits=parser_limits())
        compiled = CompiledGrammar(parser, self._tokenizer.vocab_size, self._end_ids)
        problem = compiled.try_out(_TRIED_TOKENS)
        if problem:
            raise _refusal(form, problem)
        return compiled

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """Takes seconds for a large vocabulary, so that only those wait who want structure."""
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self._end_ids:
            raise InvalidRequest("This model names no end token, so that a structured answer could not end.")
        size, ends = self._tokenizer.vocab_size, sorted(self._end_ids)
        try:
            read = LLTokenizer(self._tokenizer.definition, size, ends, slices=[])
        except ValueError as error:
            raise InvalidRequest(f"structured_outputs cannot be used with this model's tokenizer ({error}).") from None
        return LLTokenizer(TokenizerWrapper(_Spelling(self._tokenizer, read)), size, ends)


class _Spelling:
    """A vocabulary as llguidance wants to see it.

    What it reads from a definition by itself finds special tokens in text that a grammar spells, as a model may not.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, read: LLTokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self.eos_token_id = read.eos_token
        self.tokens = [read.decode_bytes([token_id]) for token_id in ids]
        self.special_token_ids = list(filter(read.is_special_token, ids))

    def __call__(self, text: str) -> list[int]:
        """How the model would write this part of an answer."""
        return self._tokenizer.encode_characters(text)


def _text_of(wanted: StructuredOutputsParams) -> tuple[str, str]:
    """(form, its text); a choice has the form of a grammar, with limits of its own."""
    if wanted.json is not None:
        return "json", _schema_text(wanted.json)
    if wanted.regex is not None:
        return "regex", wanted.regex
    if wanted.choice is not None:
        return "choice", "\n".join(("start: CHOICE", "CHOICE: " + " | ".join(map(_quoted, wanted.choice))))
    if wanted.grammar is not None:
        return "grammar", wanted.grammar
    return "json", '{"type": "object"}'


def _quoted(choice: str) -> str:
    return json.dumps(choice, ensure_ascii=False)


def _schema_text(schema: str | dict[str, Any]) -> str:
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(parsed, ensure_ascii=False)
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"structured_outputs.json is not JSON ({error}).") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"structured_outputs.json must be a schema, that is a JSON object, got {text[:100]}.")
    if _depth(parsed) > MAX_NESTING:
        raise _too_deep()
    return text


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"structured_outputs.json is nested more than {MAX_NESTING} levels deep: make it flatter.")


def _depth(value: Any) -> int:
    """Objects and lists within one another."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (dict, list, tuple))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _json_options(wanted: StructuredOutputsParams) -> str:
    from tilewise.inputs.grammar_source import WHITE_SPACE

    if wanted.disable_any_whitespace:
        return json.dumps({"whitespace_flexible": False})
    return json.dumps({"whitespace_pattern": wanted.whitespace_pattern or WHITE_SPACE})


def _source(form: str, text: str, options: str) -> str:
    """What the parser takes."""
    from tilewise.inputs.grammar_source import translate

    return translate("grammar" if form == "choice" else form, text, json.loads(options))


def _checked_source(form: str, text: str, options: str) -> str:
    """What the parser takes, after a process of its own has compiled it once."""
    job = {"form": "grammar" if form == "choice" else form, "text": text, "options": options, "seconds": SECONDS}
    results = confined.run("tilewise.inputs.grammar_process", job)
    missing = {"error": f"it does not compile within {SECONDS} seconds, or its references are nested too deeply"}
    found: dict[str, str] = results[0] if results else missing
    if "error" in found:
        raise _refusal(form, found["error"])
    return found["source"]


def _refusal(form: str, problem: str) -> InvalidRequest:
    """The library's words on one line, without the text that the caller knows."""
    if problem.startswith(_UNFULFILLED):
        problem = "no text fulfils it"
    said = _SOURCE_LINE.split(problem.replace("<non-verbose/>", ""))[0]
    if form != "grammar":
        said = _PLACE.sub("", said)
    return InvalidRequest(f"structured_outputs.{form} cannot be used: {' '.join(said.split())[:300].rstrip('.')}.")
