"""`tilewise tools twin NAME FOLDER`: a tiny checkpoint with the structure of a published one, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.verb import Verb, VerbGroup
from tilewise.option import option, word


@dataclass(frozen=True, kw_only=True)
class TwinOptions:
    GROUP: ClassVar = "checkpoint"
    name: str | None = word("a published checkpoint, such as InternVL3-8B", "NAME", None)
    folder: str | None = word("a folder that is new or empty", "FOLDER", None)
    list: bool = option(False, "show every name and what it is made of, and write nothing")
    format: Literal["original", "hf"] = option("original", "OpenGVLab's own format, or transformers'")
    seed: int = option(0, "of the noise")
    shards: int = option(1, "files of weights")
    dtype: Literal["bfloat16", "float16", "float32"] = option("bfloat16", "of the weights, as published")


def twin(line: CommandLine) -> int:
    options = line.take(TwinOptions)
    if options.list:
        return print_family()
    if options.name is None or options.folder is None:
        raise BadUsage("NAME and FOLDER are needed, or --list")
    from tilewise.twin import write_twin

    folder = Path(options.folder)
    write_twin(options.name, folder, options.format, options.seed, options.shards, options.dtype)
    print(f"{folder} holds a twin of {options.name}: its weights are noise, and so are its answers.")
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


TWIN = Verb(
    usage="tilewise tools twin NAME FOLDER [OPTION ...]\n       tilewise tools twin --list",
    about="Write a checkpoint of a few hundred kilobytes with the structure, the files and the order of special tokens "
    "of a published one. Its weights are noise, and so are its answers. It has two to six heads, so that few ranks can "
    "share it, and takes 2,048 tokens.",
    run=twin,
    options=(TwinOptions,),
    examples="""\
examples:
  tilewise tools twin InternVL3-8B ./tiny
  tilewise ask "the hen" --model ./tiny
  tilewise tools twin InternVL3_5-30B-A3B ./tiny-hf --format hf --dtype float32
  tilewise tools twin --list
""",
)
TOOLS = VerbGroup(
    usage="tilewise tools TOOL ...",
    about="Tools for tests of your own.",
    title="tools",
    verbs={"twin": ("write a tiny checkpoint of noise, built like a published one", TWIN)},
)
