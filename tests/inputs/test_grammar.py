"""Grammars at the border: what they let through with every kind of tokenizer, and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jsonschema
import pytest

from tests.inputs import kinds
from tests.inputs.vocabulary import small_tokenizer
from tests.inputs.walks import CHOICES, GBNF, PATTERNS, SCHEMAS, SUMS, walk
from tilewise.engine.grammar import ids_in
from tilewise.errors import InvalidRequest
from tilewise.inputs.grammar import MAX_CHARACTERS, MAX_NESTING, Grammars
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import StructuredOutputsParams

KINDS = {
    "small": lambda folder: small_tokenizer(),
    **{
        make.__name__: lambda folder, make=make: make(folder).tokenizer
        for make in (kinds.qwen, kinds.llama3, kinds.internlm2, kinds.internlm3, kinds.yi, kinds.phi3, kinds.unigram)
    },
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def grammars(tokenizer) -> Grammars:
    return grammars_of(tokenizer)


@pytest.fixture(scope="module")
def small() -> Grammars:
    return grammars_of(small_tokenizer())


def grammars_of(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, [tokenizer.special_id("<|im_end|>")])


def compiled(grammars: Grammars, **form):
    return grammars.compile(StructuredOutputsParams(**form))


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_fulfil_their_schema(grammars, tokenizer, name):
    grammar = compiled(grammars, json=SCHEMAS[name])
    texts = {walk(grammar, tokenizer, seed) for seed in range(25)}
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS[name])
    assert len(texts) > 4


@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_match_their_pattern(grammars, tokenizer, pattern):
    grammar = compiled(grammars, regex=pattern)
    for seed in range(20):
        text = walk(grammar, tokenizer, seed)
        assert re.fullmatch(pattern, text), text


def test_every_choice_can_be_made_and_nothing_else(grammars, tokenizer):
    grammar = compiled(grammars, choice=CHOICES)
    assert {walk(grammar, tokenizer, seed) for seed in range(120)} == set(CHOICES)


def test_answers_follow_a_grammar(grammars, tokenizer):
    grammar = compiled(grammars, grammar=SUMS)
    for seed in range(20):
        text = walk(grammar, tokenizer, seed)
        assert set(text) <= set("0123456789+()")
        eval(re.sub(r"\b0+(?=\d)", "", text))  # a sum with balanced parentheses
    select = compiled(grammars, grammar=GBNF)
    assert all(
        re.fullmatch("SELECT [名b](, [名b])? FROM [a-z]{2}", walk(select, tokenizer, seed)) for seed in range(20)
    )


def test_the_text_of_a_special_token_is_spelled_in_characters(grammars, tokenizer):
    text = "a<|im_end|><img><box>b"
    for form in ({"choice": [text]}, {"regex": re.escape(text)}, {"json": {"const": text}}):
        assert walk(compiled(grammars, **form), tokenizer, 0) in (text, f'"{text}"')


def test_an_object_is_an_object(small):
    grammar = compiled(small, json_object=True)
    for seed in range(20):
        assert isinstance(json.loads(walk(grammar, small_tokenizer(), seed, most=20000)), dict)


def test_white_space_of_json(small):
    def allows(text, **options):
        matcher = compiled(small, json={"type": "array", "items": {"type": "integer"}}, **options).start(
            ignore_eos=False
        )
        for token in small_tokenizer().encode_text(text):
            if token not in ids_in(matcher.masks()[0]):
                return False
            matcher.accept(token)
        return True

    assert allows("[1, 2,\n    3]")
    assert not allows("[1," + " " * 3)
    assert not allows("[1,\n" + " " * 60)
    assert allows("[1,___2]", whitespace_pattern="_+")
    assert allows("[1,2]", disable_any_whitespace=True)
    assert not allows("[1, 2]", disable_any_whitespace=True)


def test_a_grammar_is_compiled_once(small):
    first = compiled(small, regex="[a-z]+[0-9]")
    assert compiled(small, regex="[a-z]+[0-9]") is first
    assert compiled(small, grammar="start: /[a-z]+[0-9]/") is not first


def test_keys_come_in_the_order_of_the_schema(small):
    properties = {"b": {"const": 1}, "a": {"const": 2}}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": False}
    assert list(json.loads(walk(compiled(small, json=schema), small_tokenizer(), 0))) == ["b", "a"]


def nested(levels: int) -> dict:
    return {"type": "array", "items": nested(levels - 1)} if levels else {}


def chain_of_references(length: int) -> dict:
    links = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {}}}


def chain_of_rules(length: int) -> str:
    return "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(length)) + f'r{length}: "a"'


def combinations(parts: int) -> dict:
    """Six ways for each part."""
    return {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"const": j}}} for j in range(6)]} for i in range(parts)]}


def circle() -> dict:
    schema: dict = {"type": "array"}
    schema["items"] = schema
    return schema


BAD = [
    ({"json": "{"}, r"structured_outputs.json is not JSON \(Expecting property name"),
    ({"json": "[]"}, r"must be a schema, that is a JSON object, got \[\]"),
    ({"json": {"type": object}}, "is not JSON .*not JSON serializable"),
    ({"json": circle()}, "is not JSON .*Circular"),
    ({"json": {"type": "wat"}}, "structured_outputs.json cannot be used: Invalid type: wat"),
    ({"json": {"not": {}}}, r'Unimplemented keys: \["not"\]'),
    ({"json": {"type": "string", "pattern": "("}}, "unclosed group"),
    ({"json": {"$ref": "#/nowhere"}}, "Pointer '/nowhere' does not exist"),
    ({"json": {"$ref": "http://example.com/x"}}, "does not fetch resources"),
    ({"json": {"$ref": "#"}}, "no text fulfils it"),
    ({"json": {"type": "string", "pattern": "\ud800"}}, "structured_outputs.json cannot be used"),
    ({"json": nested(MAX_NESTING)}, f"nested more than {MAX_NESTING} levels deep: make it flatter"),
    ({"json": '{"a":' * 12_000}, f"nested more than {MAX_NESTING} levels deep|is not JSON"),
    ({"json": chain_of_references(1000)}, "references are nested too deeply"),
    ({"json": combinations(20)}, "schema too large"),
    ({"json": {"allOf": [{"pattern": f".*a.{{{i}}}b.*", "type": "string"} for i in range(1, 60)]}},
     "does not compile within 2 seconds"),
    ({"json": {"type": "object", "properties": {f"property_{i}": {} for i in range(5000)}}}, "characters, at most"),
    ({"json": {"type": "integer", "whitespace": 1}, "whitespace_pattern": "("}, "unclosed group"),
    ({"regex": "("}, "structured_outputs.regex cannot be used: invalid regex .*unclosed group"),
    ({"regex": "(?=a)b"}, "look-around, including look-ahead and look-behind, is not supported"),
    ({"regex": r"(a)\1"}, "backreferences are not supported"),
    ({"regex": "(a{1000}){1000}"}, "too many expressions"),
    ({"regex": "a{1000000000}"}, "too many expressions"),
    ({"regex": "(" * 2000 + ")" * 2000}, "structured_outputs.regex cannot be used"),
    ({"regex": "a" * (MAX_CHARACTERS["regex"] + 1)}, "has 8193 characters, at most 8192 are allowed: make it smaller"),
    ({"choice": ["x" * 70_000]}, "structured_outputs.choice has 70024 characters, at most 65536"),
    ({"grammar": "start: nothing"}, r'structured_outputs.grammar cannot be used: at 1\(8\): unknown name: "nothing"'),
    ({"grammar": "start: " + "(" * 9000 + '"a"' + ")" * 9000}, "too deeply nested"),
    ({"grammar": chain_of_rules(4000)}, "nested too deeply"),
    ({"grammar": 'root ::= "a'}, "Unexpected end of input"),
    ({"grammar": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000}, "structured_outputs.grammar cannot be used"),
    ({"grammar": "start: <[99999]>"}, "Token range end too large"),
    ({"grammar": ""}, "structured_outputs.grammar cannot be used"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "message"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_followed_is_refused_by_name(small, form, message):
    with pytest.raises(InvalidRequest, match=message) as refusal:
        compiled(small, **form)
    assert refusal.value.http_status == 400
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


NASTY = [
    {"regex": "(.*a){30}.{100}b"},
    {"regex": "(x+x+)+y"},
    {"regex": r"(\p{L}|\p{N}.{10}){100}.*x"},
    {"regex": "([a-z]{1,100}[0-9]{1,100}){1,100}"},
    {"json": {"type": "string", "minLength": 10**9}},
    {"json": {"type": "array", "minItems": 10**9}},
    {"json": {"type": "array", "maxItems": 10**5, "items": {"type": "array", "maxItems": 10**5}}},
    {"json": {"anyOf": [{"$ref": "#"}, {"type": "string"}]}},
    {"json": {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}},
    {"grammar": 'start: e\ne: e e | e "+" e | "" | /[a-z+]*/'},
    {"grammar": 'start: ("a"{1,1000}){1,1000}'},
    {"choice": [f"{number} choices" for number in range(3500)]},
]


@pytest.mark.parametrize("form", NASTY, ids=range(len(NASTY)))
def test_what_is_heavy_is_followed_or_ends_with_an_error(small, form):
    """Whichever it is, the process lives and a mask always allows something."""
    matcher = compiled(small, **form).start(ignore_eos=True)
    for _ in range(200):
        if matcher.finish_reason is not None:
            break
        matcher.accept(ids_in(matcher.masks()[0])[-1])
    assert matcher.finish_reason in (None, "stop") or matcher.problem


def test_a_model_without_end_tokens_and_a_tokenizer_that_cannot_be_read():
    with pytest.raises(InvalidRequest, match="names no end token"):
        compiled(Grammars(small_tokenizer(), []), regex="a")
    unreadable = small_tokenizer()
    unreadable.definition = "{}"
    with pytest.raises(InvalidRequest, match="cannot be used with this model's tokenizer"):
        compiled(grammars_of(unreadable), regex="a")


def test_compiling_elsewhere_needs_little(tmp_path):
    """The process that compiles loads neither torch nor numpy, from whatever folder it is called."""
    (tmp_path / "llguidance.py").write_text("raise SystemExit('the wrong one')")
    code = (
        "import sys, tilewise.inputs.grammar_process\n"
        "sys.exit(bool({'torch', 'numpy', 'tokenizers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, cwd=tmp_path).returncode == 0
