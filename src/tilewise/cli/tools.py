"""`tilewise tools twin NAME FOLDER`: a tiny checkpoint with the structure of a published one, for tests."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  tilewise tools twin InternVL3-8B ./tiny
  tilewise ask "the hen" --model ./tiny
  tilewise tools twin InternVL3_5-30B-A3B ./tiny-hf --format hf --dtype float32
  tilewise tools twin --list
"""


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("tools", description="Tools for tests of your own.")
    tools = parser.add_subparsers(title="tools", metavar="TOOL", required=True)
    add_twin(tools)


def add_twin(tools: Any) -> None:
    parser = tools.add_parser(
        "twin",
        usage="tilewise tools twin NAME FOLDER [OPTION ...]\n       tilewise tools twin --list",
        help="write a tiny checkpoint of noise, built like a published one",
        description="Write a checkpoint of a few hundred kilobytes with the structure, the files and the order of "
        "special tokens of a published one. Its weights are noise, and so are its answers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a published checkpoint, such as InternVL3-8B")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, help="a folder that is new or empty")
    parser.add_argument("--list", action="store_true", help="show every name and what it is made of, and write nothing")
    parser.add_argument(
        "--format",
        choices=("original", "hf"),
        default="original",
        help="OpenGVLab's own format, or transformers' (default: original)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="files of weights (default: 1)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="of the weights (default: bfloat16, as published)",
    )
    parser.set_defaults(run=lambda options: run_twin(parser, options))


def run_twin(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.list:
        return print_family()
    if options.name is None or options.folder is None:
        parser.error("NAME and FOLDER are needed, or --list")
    from tilewise.tools.twin.named import write_twin

    write_twin(options.name, options.folder, options.format, options.seed, options.shards, options.dtype)
    print(f"{options.folder} holds a twin of {options.name}: its weights are noise, and so are its answers.")
    return 0


def print_family() -> int:
    """Print a table of all twins, in the order of publication."""
    from rich.console import Console
    from rich.table import Table

    from tilewise.weights.family import MEMBERS, RELATIVES, TOWERS

    table = Table("name", "vision", "language model", "decoder", "rope", "template", "formats")
    for name, member in MEMBERS.items():
        series, formats = member.language.series, "original, hf" if member.hf_name else "original"
        decoder = series.backbone + (" + router" if member.flash else "")
        tower = TOWERS[member.vision].name
        table.add_row(name, tower, member.language.name, decoder, series.rope.kind, member.template, formats)
        if series.backbone == "gpt_oss":
            table.add_row(f"{name}-MXFP4", "", "", "experts in blocks", "", "", "original")
    for relative in RELATIVES.values():
        like = f"as {relative.like.name}"
        table.add_row(relative.name, like, "", "", "", relative.template or "", relative.format)
    Console(width=200).print(table)  # names are there to be copied: no terminal is too narrow for them
    return 0
