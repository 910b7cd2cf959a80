"""`tilewise generate "PROMPT"`: continue a raw prompt, special tokens and all."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tilewise.cli.options import add_engine_flags, add_sampling_flags, engine_options, sampling_of

EXAMPLES = """\
examples:
  tilewise generate $'<|im_start|>user\\n<image>\\nWhat is this?<|im_end|>\\n<|im_start|>assistant\\n' --image a.jpg
  cat prompt.txt | tilewise generate -
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser(
        "generate",
        usage="tilewise generate [OPTION ...] PROMPT",
        help="continue a raw prompt",
        description="Continue a raw prompt, in which special tokens are meant; no template is applied.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from standard input")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="picture for the next <image>")
    add_sampling_flags(parser, max_tokens=128)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from tilewise.llm import LLM

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    media = {"image": [Path(name) for name in options.image]}
    with LLM(**engine_options(options)) as llm:
        outputs = llm.generate({"prompt": prompt, "multi_modal_data": media}, sampling_of(options))
    print(outputs[0].outputs[0].text)
    return 0
