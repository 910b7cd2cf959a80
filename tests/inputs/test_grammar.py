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
from tilewise.config import EngineConfig
from tilewise.engine.grammar import ids_in
from tilewise.errors import InvalidRequest
from tilewise.inputs.grammar import MAX_CHARACTERS, MAX_NESTING, Grammars
from tilewise.inputs.options import structured
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.sampling_params import SamplingParams, StructuredOutputsParams

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
    texts = {walk(grammar, tokenizer, seed) for seed in range(8)}
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMAS[name])
    assert len(texts) > 2


@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_match_their_pattern(grammars, tokenizer, pattern):
    grammar = compiled(grammars, regex=pattern)
    for seed in range(6):
        text = walk(grammar, tokenizer, seed)
        assert re.fullmatch(pattern, text), text


def test_every_choice_can_be_made_and_nothing_else(grammars, tokenizer):
    grammar = compiled(grammars, choice=CHOICES)
    assert {walk(grammar, tokenizer, seed) for seed in range(120)} == set(CHOICES)


def test_answers_follow_a_grammar(grammars, tokenizer):
    grammar = compiled(grammars, grammar=SUMS)
    for seed in range(6):
        text = walk(grammar, tokenizer, seed)
        assert set(text) <= set("0123456789+()")
        eval(re.sub(r"\b0+(?=\d)", "", text))  # a sum with balanced parentheses
    select = compiled(grammars, grammar=GBNF)
    assert all(re.fullmatch("SELECT [名b](, [名b])? FROM [a-z]{2}", walk(select, tokenizer, seed)) for seed in range(6))


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

    assert allows("[1, 2,3]")
    assert not allows("[1," + " " * 2)
    assert not allows("[1,\n")
    assert allows("[1,\n    2]", whitespace_pattern=r"\n {4}")
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
    ({"json": "false"}, "Unsatisfiable schema"),
    ({"json": {"type": "string", "pattern": "(?=a"}}, "look-around|unclosed group"),
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
    ({"grammar": r"start: /\bfoo/"}, r"at 1\(8\): invalid regex .*WordUnicode"),
    ({"grammar": 'x: "a"'}, "no start rule found"),
    ({"structural_tag": "[]"}, "structured_outputs.structural_tag must be a JSON object"),
    ({"structural_tag": {"structures": []}}, "structural_tag needs triggers"),
    ({"structural_tag": {"format": {"type": "sequense", "elements": []}}}, "Did you mean"),
    ({"structural_tag": {"format": {"type": "tag", "begin": "a", "content": {"type": "any_text"}}}}, "needs end"),
    ({"structural_tag": {"format": {"type": ["tag"]}}}, "format.type must be one of"),
    ({"structural_tag": {"format": {"type": "tags_with_separator", "tags": ["x"], "separator": ","}}},
     r"tags\[0\] needs begin and content and end, got 'x'"),
    ({"regex": "[" * 1100}, "structured_outputs.regex cannot be used"),
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
        "import sys, tilewise.inputs.sandbox, tilewise.inputs.grammar_source\n"
        "sys.exit(bool({'torch', 'numpy', 'tokenizers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, cwd=tmp_path).returncode == 0


def followed(grammars: Grammars, text: str, **form) -> bool:
    """Whether a whole answer may be this text."""
    tokenizer = small_tokenizer()
    matcher = compiled(grammars, **form).start(ignore_eos=False)
    for token in tokenizer.encode_characters(text):
        if token not in ids_in(matcher.masks()[0]):
            return False
        matcher.accept(token)
    return matcher.finish_reason == "stop" or tokenizer.special_id("<|im_end|>") in ids_in(matcher.masks()[0])


NAMED = {"type": "object", "properties": {"a": {"type": "integer"}}}
COMBINED = {
    "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"const": 2}}}],
    "properties": {"c": {"const": 3}},
    "anyOf": [{"required": ["a"]}, {"properties": {"d": {"const": 4}}, "required": ["d"]}],
    "$defs": {"base": {"type": "object", "properties": {"a": {"$ref": "#/$defs/inner"}}}, "inner": NAMED},
}


@pytest.mark.parametrize(
    ("schema", "text", "closed", "opened"),
    [
        (NAMED, '{"a": 1}', True, True),
        (NAMED, '{"a": 1, "z": 1}', False, True),
        ({"properties": {}, "type": "object"}, '{"z": 1}', False, True),
        ({"type": "object"}, '{"z": 1}', True, True),
        ({**NAMED, "additionalProperties": True}, '{"a": 1, "z": 1}', True, True),
        ({**NAMED, "additionalProperties": {"type": "null"}}, '{"z": null}', True, True),
        ({**NAMED, "additionalProperties": {"type": "null"}}, '{"z": 1}', False, False),
        ({**NAMED, "additionalProperties": False}, '{"z": 1}', False, False),
        ({**NAMED, "additionalProperties": None}, '{"z": 1}', False, True),
        ({**NAMED, "required": ["z"]}, '{"z": 1}', True, True),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 2}, '{"a": 1, "z": 2}', True, True),
        ({"type": "array", "items": NAMED}, '[{"z": 1}]', False, True),
        ({"type": "object", "patternProperties": {"^x_": {}}}, '{"x_y": 1}', True, True),
        ({"type": "object", "patternProperties": {"^x_": {}}}, '{"z": 1}', False, True),
        ({"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}], "$defs": {"n": NAMED}}, '{"z": 1}', False, True),
        ({"allOf": [NAMED], "description": "as pydantic writes it"}, '{"z": 1}', False, True),
        (COMBINED, '{"a": {"a": 1}, "b": 2, "c": 3}', True, True),
        (COMBINED, '{"a": {"z": 1}, "b": 2}', False, True),
        (COMBINED, '{"b": 2, "d": 4}', True, True),
        (COMBINED, '{"b": 2}', False, False),
        (COMBINED, '{"a": {"a": 1}, "z": 1}', False, True),
        ({"allOf": [NAMED, {"properties": {"b": {}}}], "unevaluatedProperties": False}, '{"a": 1, "b": 2}', True, True),
        ({**NAMED, "if": {"required": ["a"]}, "then": {"properties": {"b": {}}}}, '{"a": 1, "b": 2}', True, True),
    ],
    ids=range(23),
)
def test_objects_that_list_their_properties_are_closed_unless_they_say_that_they_are_not(
    small, schema, text, closed, opened
):
    assert followed(small, text, json=schema) is closed
    assert followed(small, text, json=schema, disable_additional_properties=True) is closed
    assert followed(small, text, json=schema, disable_additional_properties=False) is opened


def test_a_combination_is_closed_as_the_standard_closes_one(small):
    """By `unevaluatedProperties: false`, which sees what `allOf`, `anyOf` and `$ref` say."""
    check = jsonschema.Draft202012Validator({**COMBINED, "unevaluatedProperties": False})
    grammar = compiled(small, json=COMBINED)
    texts = {walk(grammar, small_tokenizer(), seed) for seed in range(40)}
    assert len(texts) > 4
    for text in texts:
        check.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "names", "good", "bad"),
    [
        ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, ["uniqueItems"], "[1,2]", "[3]"),
        ({"type": "string", "format": "color"}, ["format color"], '"red"', "1"),
        ({"type": "object", "propertyNames": {"enum": ["a"]}}, ["propertyNames"], '{"a":1}', "[]"),
        ({"type": "integer", "not": {"const": 1}}, ["not"], "2", '"a"'),
        ({"type": "string", "if": {}, "then": {}, "else": {}}, ["else", "if", "then"], '"a"', "1"),
        ({"type": "array", "contains": {"const": 1}, "minContains": 1}, ["contains", "minContains"], "[1]", "{}"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, ["dependentRequired"], "{}", "[]"),
        ({"type": "string", "pattern": r"^(?!x)[a-z]+\b$"}, ["look-around", "word boundary"], '"abc"', '"A"'),
        ({"type": "string", "pattern": r"^(a|b)\1$"}, ["back-reference"], '"aa"', '"cc"'),
        ({"type": "object", "patternProperties": {"^(?!x)": {"type": "null"}}}, ["patternProperties"], '{"a":1}', "1"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, ["oneOf"], '"a"', "1"),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2},
            ["minProperties"],
            '{"a":1,"b":2}',
            '{"z":1}',
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_followed_is_named_and_the_rest_holds(small, schema, names, good, bad):
    assert compiled(small, json=schema).unenforced == tuple(names)
    assert followed(small, good, json=schema)
    assert not followed(small, bad, json=schema)


@pytest.mark.parametrize(
    ("schema", "good"),
    [
        ({"type": "object", "properties": {"a": None}, "required": None, "$defs": None}, '{"a": 1}'),
        ({"type": "string", "pattern": None, "format": None, "enum": None, "maxLength": None}, '"a"'),
        ({"type": ["string", "null"]}, "null"),
        ({"type": "string", "nullable": True}, "null"),
        ({"const": None}, "null"),
        ({"enum": [1, "a", None, {"b": 1}, [2]]}, '{"b": 1}'),
        ({"$schema": "anything", "type": "integer"}, "1"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 0,
          "exclusiveMinimum": True}, "1"),
        ({"type": "array", "items": {"$ref": "#"}}, "[[], [[]]]"),
        ("true", '{"a": 1}'),
    ],
    ids=range(10),
)  # fmt: skip
def test_spellings_of_schemas(small, schema, good):
    assert followed(small, good, json=schema)
    assert compiled(small, json=schema).unenforced == ()


@pytest.mark.parametrize(
    ("pattern", "names", "text"),
    [
        (r"((25[0-5]|(2[0-4]|1\d|[1-9]|)\d)\.?\b){4}", ("word boundary",), "192.168.0.1"),
        (r"(?=.*[0-9])[a-z0-9]{2,8}(?<!z)", ("look-around",), "a1"),
        (r"([\])(]b*)\b", ("word boundary",), ")b"),
        (r"(['\"])x\1", ("back-reference",), "'x'"),
        (r"\\b[(?=]+", (), "\\b(?="),
    ],
)
def test_a_pattern_is_followed_without_what_looks_around(small, pattern, names, text):
    assert re.fullmatch(pattern, text)
    assert compiled(small, regex=pattern).unenforced == names
    assert followed(small, text, regex=pattern)


@pytest.mark.parametrize(
    "grammar",
    ['?start: "a" | "b"', '// one\n?start: x\n?x: "a"', '!start: "a"', 'start: "a" | "x::=y"', 'root ::= "a"'],
)
def test_grammars_as_lark_and_gbnf_begin(small, grammar):
    assert followed(small, "a", grammar=grammar)
    assert not followed(small, "c", grammar=grammar)


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OLD_TAG = {"structures": [{"begin": "<f=get>", "schema": CITY, "end": "</f>"}], "triggers": ["<f="]}
GET = {"type": "tag", "begin": "<f=get>", "content": {"type": "json_schema", "json_schema": CITY}, "end": "</f>"}
THINK = {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": ["</t>", "</u>"]}


@pytest.mark.parametrize(
    ("tag", "good", "bad"),
    [
        (OLD_TAG, ["hello", 'x <f=get>{"city": "A"}</f> y <f=get>{"city": "B"}</f>'], ["<f=put>", '<f=get>{"z"']),
        (json.dumps(OLD_TAG), ["hello"], ["<f=put>"]),
        ({"type": "structural_tag", "format": {"type": "sequence", "elements": [THINK, GET]}},
         ['<t>a < b</t><f=get>{"city": "A"}</f>', '<t></u><f=get>{"city": "A"}</f>'], ["x", "<t>a</t>x"]),
        ({"format": {"type": "or", "elements": [{"type": "const_string", "value": "no"},
                                                {"type": "regex", "pattern": "[0-9]+"}]}}, ["no", "12"], ["no1"]),
        ({"format": {"type": "triggered_tags", "triggers": ["<t"], "tags": [THINK], "at_least_one": True,
                     "stop_after_first": True}}, ["<t>a</t>"], ["a<t>", "<t>a</t>b"]),
        ({"format": {"type": "tags_with_separator", "tags": [GET], "separator": ";"}},
         ["", '<f=get>{"city": "A"}</f>;<f=get>{"city": "B"}</f>'], [";"]),
    ],
    ids=range(6),
)  # fmt: skip
def test_structural_tags(small, tag, good, bad):
    for text in good:
        assert followed(small, text, structural_tag=tag), text
    for text in bad:
        assert not followed(small, text, structural_tag=tag), text


def test_what_holds_for_all_requests_gives_way_to_what_a_request_says():
    wanted = SamplingParams(structured_outputs=StructuredOutputsParams(json=NAMED))
    opened = structured(
        wanted, EngineConfig(disable_additional_properties=False, disable_any_whitespace=True)
    ).structured_outputs
    assert (opened.disable_additional_properties, opened.disable_any_whitespace) == (False, True)
    said = SamplingParams(structured_outputs=StructuredOutputsParams(json=NAMED, disable_additional_properties=True))
    assert structured(said, EngineConfig(disable_additional_properties=False)) == said
    assert structured(wanted, EngineConfig()) == wanted
