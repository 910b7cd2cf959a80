"""Microseconds to compute the mask of a token of a structured answer, and seconds to compile its grammar.

    python -m benchmarks.grammar [--tokenizer FOLDER] [--rounds 20]

The default vocabulary is Qwen's with InternVL's tokens, 151,678 of them; it needs the package dashscope, which ships
it. Every form is followed along one answer, by the tokens that the tokenizer makes of it. Times of masks are those of
computing, so that other work on the machine does not count. `cold` is the first answer of a grammar, whose parser
remembers what it has seen. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from tests.inputs.qwen import QWEN3, definition_with, ranks_file, read_vocabulary

from tilewise.inputs.grammar import Grammars
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.structured_outputs import StructuredOutputsParams
from tilewise.types import Grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 80},
        "objects": {
            "type": "array",
            "maxItems": 8,
            "items": {
                "type": "object",
                "properties": {
                    "label": {"enum": ["person", "car", "sign", "tree", "animal", "other"]},
                    "box": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0, "maximum": 1000},
                        "minItems": 4,
                        "maxItems": 4,
                    },
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "required": ["label", "box"],
                "additionalProperties": False,
            },
        },
        "text": {"type": "string"},
    },
    "required": ["title", "objects"],
    "additionalProperties": False,
}
ANSWER = {
    "title": "A stop sign at the corner, 路口的停车标志",
    "objects": [
        {"label": "sign", "box": [12, 40, 500, 620], "confidence": 0.93},
        {"label": "tree", "box": [0, 0, 999, 1000]},
    ],
    "text": 'STOP, all ways; below it "alto"',
}
FORMS = {
    "schema": (StructuredOutputsParams(json=SCHEMA), json.dumps(ANSWER, ensure_ascii=False)),
    "indented": (StructuredOutputsParams(json=SCHEMA), json.dumps(ANSWER, ensure_ascii=False, indent=2)),
    "any object": (StructuredOutputsParams(json_object=True), json.dumps(ANSWER, ensure_ascii=False)),
    "regex": (
        StructuredOutputsParams(regex=r"[A-Z][^.\n]{10,200}\."),
        "The sign says that everybody has to stop here.",
    ),
    "choice": (StructuredOutputsParams(choice=["红色的八边形", "red octagon", "yield"]), "红色的八边形"),
}


def follow(grammar: Grammar, tokens: list[int]) -> list[float]:
    """Seconds for each token: accepting it and computing the mask behind it."""
    matcher = grammar.start(ignore_eos=False)
    spent = []
    for token in tokens:
        started = time.thread_time()
        matcher.accept(token)
        spent.append(time.thread_time() - started)
        assert matcher.finish_reason is None
    return spent


def measure(grammars: Grammars, form: StructuredOutputsParams, tokens: list[int], rounds: int) -> dict[str, float]:
    started = time.perf_counter()
    grammar = grammars.compile(form)
    compiled = time.perf_counter() - started
    cold = follow(grammar, tokens)
    warm = [seconds for _ in range(rounds) for seconds in follow(grammar, tokens)]
    return {
        "tokens": len(tokens),
        "compile_s": round(compiled, 3),
        "cold_median_us": round(statistics.median(cold) * 1e6, 1),
        "cold_worst_us": round(max(cold) * 1e6, 1),
        "median_us": round(statistics.median(warm) * 1e6, 1),
        "worst_us": round(max(warm) * 1e6, 1),
    }


def load_tokenizer(folder: str | None) -> Tokenizer:
    if folder is not None:
        return Tokenizer.from_folder(Path(folder))
    ranks = ranks_file()
    if ranks is None:
        raise SystemExit("pip install dashscope for the Qwen vocabulary, or name a checkpoint's --tokenizer FOLDER")
    return Tokenizer(definition_with(read_vocabulary(ranks), QWEN3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", help="a folder with a tokenizer.json")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.tokenizer)
    grammars = Grammars(tokenizer, [tokenizer.special_id("<|im_end|>")])
    started = time.perf_counter()
    grammars.compile(StructuredOutputsParams(regex="a"))
    vocabulary = time.perf_counter() - started
    print(f"{tokenizer.vocab_size} tokens; the first grammar, which reads them, takes {vocabulary:.2f} s")
    results = {}
    for name, (form, text) in FORMS.items():
        found = results[name] = measure(grammars, form, tokenizer.encode_characters(text), options.rounds)
        print(
            f"{name:10s} compiled in {found['compile_s']:.3f} s; a token in {found['median_us']:.0f} us, "
            f"at worst {found['worst_us']:.0f}; cold {found['cold_median_us']:.0f} us, "
            f"at worst {found['cold_worst_us']:.0f}"
        )
    first = {"vocabulary": tokenizer.vocab_size, "first_grammar_s": round(vocabulary, 2), "machine": platform.machine()}
    print(json.dumps({**first, **results}))


if __name__ == "__main__":
    main()
