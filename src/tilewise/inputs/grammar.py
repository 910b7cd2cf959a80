"""StructuredOutputsParams -> a grammar that sequences can follow: checked here, before the engine sees the request.

llguidance follows it, and not xgrammar, because it needs neither torch nor triton, computes a mask in microseconds
without tables for a whole schema, and puts a limit on every size that a caller controls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tilewise.engine.grammar import CompiledGrammar
from tilewise.errors import InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.prepared_schema import prepare_schema, relaxed
from tilewise.inputs.sandbox import run_confined
from tilewise.inputs.schema import unknown_keywords
from tilewise.structured_outputs import StructuredOutputsParams
from tilewise.types import Request

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from tilewise.inputs.tokenizer import Tokenizer

MAX_CHARACTERS = {"json": 65_536, "grammar": 65_536, "regex": 8_192, "choice": 65_536, "structural_tag": 65_536}
MAX_NESTING = 100
SECONDS = 2  # to compile; real schemas take milliseconds
_STACK_BYTES = 2 * 2**20  # less than any thread has that compiles the same again
_WHY = (
    "it is no keyword, or cannot be followed token by token; the rest is, and a server checks answers of strict schemas"
)
_REMEMBERED = 64
_TRIED_TOKENS = 4
_UNFULFILLED = "NoExtension"  # what the library says when the first token can be nothing
_SOURCE_LINE = re.compile(r"\s+\d+ \| ")
_PLACE = re.compile(r"^at \d+\(\d+\): ")


def name_unenforced(request: Request, ignored: Ignored, vocab_size: int) -> None:
    """Name in `ignored` what does not bind the request's answers.

    These are keywords of a schema, parts of a pattern, and stop ids beyond the vocabulary.
    """
    if any(token_id >= vocab_size for token_id in request.sampling.stop_token_ids or ()):
        ignored.add("stop_token_ids", f"those beyond the vocabulary, which has {vocab_size} ids, never come")
    structure = request.sampling.structured_outputs
    kind = "regex" if structure is not None and structure.regex is not None else "schema"
    for name in request.grammar.unenforced if request.grammar else ():
        ignored.add(f"{kind}.{name.replace(' ', '-')}", _WHY)


@dataclass(frozen=True)
class _GrammarText:
    """A grammar to be compiled: a text of some kind, what of the request it leaves out, and options of JSON."""

    kind: str
    text: str
    unenforced: tuple[str, ...] = ()
    options: str = "{}"

    @property
    def job(self) -> dict[str, Any]:
        """Arguments of `grammar_source.translate`."""
        form = self.kind if self.kind in ("json", "regex") else "grammar"
        return {"form": form, "text": self.text, "options": json.loads(self.options)}


class Grammars:
    """A compiler of grammars for one vocabulary, which remembers the last few."""

    def __init__(self, tokenizer: Tokenizer, end_ids: Iterable[int], checked_before: bool = False) -> None:
        """`checked_before` spares the separate process: another instance has compiled all that will come."""
        self._tokenizer = tokenizer
        self._source_of = _source if checked_before else _checked_source
        self._end_ids = frozenset(token_id for token_id in end_ids if token_id < tokenizer.vocab_size)
        self._compiled = lru_cache(_REMEMBERED)(self._compile)

    def compile(self, wanted: StructuredOutputsParams) -> CompiledGrammar:
        """Compile a grammar. Raises InvalidRequest, naming what is wrong, within seconds whatever a caller writes."""
        return self._compiled(_form_of(wanted))

    def _compile(self, form: _GrammarText) -> CompiledGrammar:
        from llguidance import LLMatcher

        from tilewise.inputs.grammar_source import parser_limits

        source, unenforced = self._source_of(form)
        parser = LLMatcher(self._vocabulary, source, log_level=0, limits=parser_limits())
        names = tuple(dict.fromkeys((*form.unenforced, *unenforced)))
        compiled = CompiledGrammar(parser, self._tokenizer.vocab_size, self._end_ids, names)
        problem = compiled.try_out(_TRIED_TOKENS)
        if problem:
            raise _refusal(form.kind, problem)
        return compiled

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """The vocabulary for llguidance, made on first use: a large one takes seconds, which only structure needs."""
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self._end_ids:
            raise InvalidRequest("This model names no end token, so that a structured answer could not end.")
        size, ends = self._tokenizer.vocab_size, sorted(self._end_ids)
        try:
            read = LLTokenizer(self._tokenizer.definition, size, ends, slices=[])
        except ValueError as error:
            raise InvalidRequest(f"structured_outputs cannot be used with this model's tokenizer ({error}).") from None
        return LLTokenizer(TokenizerWrapper(_LlguidanceVocabulary(self._tokenizer, read)), size, ends)


class _LlguidanceVocabulary:
    """A vocabulary as llguidance wants to see it.

    A tokenizer that it reads from a definition by itself would turn text that a grammar spells into special tokens,
    which a model may not write there.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, read: LLTokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self.eos_token_id = read.eos_token
        self.tokens = [read.decode_bytes([token_id]) for token_id in ids]
        self.special_token_ids = list(filter(read.is_special_token, ids))

    def __call__(self, text: str) -> list[int]:
        """Return the ids in which the model would write this part of an answer."""
        return self._tokenizer.encode_characters(text)


def _form_of(wanted: StructuredOutputsParams) -> _GrammarText:
    """Return what is to be compiled.

    Limits on length hold for what the caller wrote; what is made of it has limits of its own.
    """
    closed = wanted.disable_additional_properties is not False
    if wanted.json is not None:
        return _of_schema(wanted.json, closed, _json_options(wanted))
    if wanted.regex is not None:
        pattern, lacks = relaxed(_within_limit("regex", wanted.regex))
        return _GrammarText("regex", pattern, lacks)
    if wanted.choice is not None:
        lark = "\n".join(("start: CHOICE", "CHOICE: " + " | ".join(map(_to_json, wanted.choice))))
        return _GrammarText("choice", _within_limit("choice", lark))
    if wanted.grammar is not None:
        return _GrammarText("grammar", _within_limit("grammar", wanted.grammar))
    if wanted.structural_tag is not None:
        return _of_tag(wanted.structural_tag, closed)
    return _GrammarText("json", '{"type": "object"}', (), _json_options(wanted))


def _of_schema(given: str | dict[str, Any], closed: bool, options: str) -> _GrammarText:
    schema = _read_json("json", given)
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequest(f"structured_outputs.json must be a schema, that is a JSON object, got {schema!r:.100}.")
    unknown = unknown_keywords(schema, "structured_outputs.json")
    prepared = prepare_schema(schema, closed)
    lacks = tuple({**unknown, **prepared.unenforced})
    return _GrammarText("json", _to_json(prepared.followed), lacks, options)


def _of_tag(given: str | dict[str, Any], closed: bool) -> _GrammarText:
    tag = _read_json("structural_tag", given)
    if not isinstance(tag, dict):
        raise InvalidRequest(f"structured_outputs.structural_tag must be a JSON object, got {tag!r:.100}.")
    from tilewise.inputs.grammar_source import tag_grammar

    lark, left_out = tag_grammar(tag, closed)
    return _GrammarText("structural_tag", lark, tuple(left_out))


def _within_limit(form: str, text: str) -> str:
    limit = MAX_CHARACTERS[form]
    if len(text) > limit:
        raise InvalidRequest(
            f"structured_outputs.{form} has {len(text)} characters, at most {limit} are allowed: make it smaller."
        )
    return text


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read_json(form: str, given: str | dict[str, Any]) -> Any:
    try:
        text = _to_json(json.loads(given) if isinstance(given, str) else given)
        parsed = json.loads(text)  # with keys that are texts, whatever Python's were
    except RecursionError:
        raise _too_deep(form) from None
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"structured_outputs.{form} is not JSON ({error}).") from None
    _within_limit(form, text)
    if _depth(parsed) > MAX_NESTING:
        raise _too_deep(form)
    return parsed


def _too_deep(form: str) -> InvalidRequest:
    return InvalidRequest(f"structured_outputs.{form} is nested more than {MAX_NESTING} levels deep: make it flatter.")


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, (dict, list, tuple))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _json_options(wanted: StructuredOutputsParams) -> str:
    from tilewise.inputs.grammar_source import WHITE_SPACE

    spacing: dict[str, Any] = {"whitespace_flexible": False}
    if not wanted.disable_any_whitespace:
        spacing = {"whitespace_pattern": wanted.whitespace_pattern or WHITE_SPACE}
    return json.dumps({**spacing, "lenient": True})


def _source(form: _GrammarText) -> tuple[str, list[str]]:
    """Return what the parser takes, and an empty list: nothing is tried here."""
    from tilewise.inputs.grammar_source import translate

    return translate(**form.job), []


def _checked_source(form: _GrammarText) -> tuple[str, list[str]]:
    """Return what the parser takes, and what it leaves out, after a process of its own has compiled it once.

    Raises InvalidRequest.
    """
    from tilewise.inputs.grammar_source import try_out

    missing = {"error": f"it does not compile within {SECONDS} seconds, or its references are nested too deeply"}
    (found,) = run_confined(try_out, form.job, 1, missing, SECONDS, _STACK_BYTES)
    if "error" in found:
        raise _refusal(form.kind, found["error"])
    return found["source"], found["unenforced"]


def _refusal(form: str, problem: str) -> InvalidRequest:
    """Return an error with the library's words on one line, without the text that the caller knows."""
    if problem.startswith(_UNFULFILLED):
        problem = "no text fulfils it"
    said = _SOURCE_LINE.split(problem.replace("<non-verbose/>", ""))[0]
    if form != "grammar":
        said = _PLACE.sub("", said)
    return InvalidRequest(f"structured_outputs.{form} cannot be used: {' '.join(said.split())[:300].rstrip('.')}.")
