"""Writes docs/support.md and the matrix in README.md from the family's table and a parity table.

`make matrix` measures, and runs this on what it found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from tilewise.twin.specs import TWINS, stand_ins
from tilewise.weights.family import GENERATIONS, MEMBERS, RELATIVES, TOWERS, FamilyMember

ROOT = Path(__file__).parent.parent
SUPPORT, README = ROOT / "docs" / "support.md", ROOT / "README.md"
BEGIN, END = "<!-- support matrix: written by make matrix -->", "<!-- end of support matrix -->"
UNKNOWN = "–"

PARTS = {
    "vision tower": "vision tower",
    "tile rows": "tile rows",
    "decoder": "decoder",
    "logits, text only": "logits, text",
    "logits, pictures": "logits, pictures",
    "router scores": "router scores",
    "32 tokens, text": "32 tokens, text",
    "32 tokens, pictures": "32 tokens, pictures",
    "logits, as original": "logits, other format",
}
"""As the parity table calls them, and as the columns are called."""
INTRODUCTION = """\
# Which models are compared with the reference, and how closely

Written by `make matrix`; the numbers are of one run{versions}.

No weights of the published checkpoints were used. Each checkpoint has a *twin* (`tilewise tools twin NAME FOLDER`):
the same switches, tensor names, packing and special tokens in tiny sizes, filled with noise. Our model and
transformers' run on the same numbers in float32 on the CPU; a cell is the worst absolute difference over all prompts,
of numbers around one. "Equal" means that not one token, or not one bit, differs. The original form is read by the ops
of the CPU platform, the -hf form by the reference ops; the last column compares the logits of the forms, whole and in
shards, in both spellings of names; bits that are equal there are not compared again ("–"). Twins that compute the same
are measured once, on the one that is named.

Flash models are not in transformers: their logits are compared with every tile in full, router scores and the 32 tokens
about pictures with the formulas of the released code, router and all.
"""
KIN = """\
## Relatives

Checkpoints of other names that compute what a member does: their twins have its numbers, in their own spelling, and
give the same bits (`tests/models/test_relatives.py`, where Qianfan-OCR is compared with transformers' own class too).

"""


@dataclass(frozen=True)
class Found:
    """The worst difference of one part of one twin, and what was allowed."""

    worst: float
    tolerance: float

    def __str__(self) -> str:
        return f"{self.worst:.1e}" if self.tolerance else "equal" if self.worst == 0 else "differ"


@dataclass(frozen=True)
class Results:
    """A parity table, by (twin, format, part), the worst of all ops."""

    found: Mapping[tuple[str, str, str], Found] = field(default_factory=dict)
    versions: str = ""

    @classmethod
    def read(cls, path: Path) -> Results:
        table = json.loads(path.read_text(encoding="utf-8"))
        found: dict[tuple[str, str, str], Found] = {}
        for row in table["rows"]:
            key = (row["model"], "hf" if "hf" in row["form"] else "original", row["part"])
            before = found.get(key, Found(0.0, row["tolerance"]))
            found[key] = Found(max(before.worst, row["worst"]), row["tolerance"])
        versions = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
        return cls(found, f", with {versions}")

    def cell(self, twin: str, form: str, part: str) -> str:
        return str(self.found.get((twin, form, part), UNKNOWN))

    def worst_logits(self, twins: list[str]) -> str:
        known = [
            found for (twin, _, part), found in self.found.items() if twin in twins and part.startswith("logits, p")
        ]
        return str(max(known, key=lambda found: found.worst, default=UNKNOWN))


def support_page(results: Results) -> str:
    sections = [INTRODUCTION.format(versions=results.versions)]
    tolerances = [_tolerance(part, results) for part in PARTS]
    for generation in GENERATIONS:
        sections.append(f"## InternVL{generation}\n")
        lines = [_row("checkpoint", "format", "twin of", *PARTS.values()), "|---" * (len(PARTS) + 3) + "|"]
        lines.append(_row("*tolerance*", "", "", *tolerances))
        members = [member for member in MEMBERS.values() if member.generation == generation]
        lines += [_row(*cells) for member in members for cells in _support_rows(member, results)]
        sections.append("\n".join(lines) + "\n")
    lines = [_row("checkpoint", "computes as", "format"), "|---" * 3 + "|"]
    lines += [_row(relative.id, relative.like.name, relative.format) for relative in RELATIVES.values()]
    return "\n".join([*sections, KIN + "\n".join(lines) + "\n"])


def _support_rows(member: FamilyMember, results: Results) -> Iterator[list[str]]:
    measured_on = stand_ins()
    blocks = f"{member.name}-MXFP4"
    yield _cells(member.name, "original", measured_on[member.name], "original", results)
    if blocks in TWINS:
        yield _cells(member.name, "original, MXFP4", measured_on[blocks], "original", results)
    if member.hf_name:
        yield _cells(
            member.name, f"`{member.hf_name.removeprefix(member.name)}`", measured_on[member.name], "hf", results
        )


def _cells(name: str, shown: str, twin: str, form: str, results: Results) -> list[str]:
    return [name, shown, "itself" if twin == name else twin, *(results.cell(twin, form, part) for part in PARTS)]


def _tolerance(part: str, results: Results) -> str:
    allowed = {found.tolerance for (_, _, name), found in results.found.items() if name == part}
    return f"{max(allowed):.0e}" if allowed and max(allowed) else "none" if allowed else UNKNOWN


def readme_matrix(results: Results) -> str:
    measured_on = stand_ins()
    head = ("generation", "language model", "sizes", "vision", "formats", "worst difference of logits")
    lines = [BEGIN, _row(*head), "|---" * len(head) + "|"]
    for (generation, flash, _), group in groupby(sorted(MEMBERS.values(), key=_group), key=_group):
        members = list(group)
        series = ", ".join(dict.fromkeys(member.language.series.name for member in members))
        sizes = ", ".join(member.name.partition("-")[2].removesuffix("-Flash") for member in members)
        towers = " and ".join(dict.fromkeys(TOWERS[member.vision].name.partition("-")[2] for member in members))
        formats = "original, -hf" if members[0].hf_name else "original"
        worst = results.worst_logits([measured_on[member.name] for member in members])
        lines.append(_row(f"InternVL{generation}{flash}", series, sizes, towers, formats, worst))
    for relative in RELATIVES.values():
        like = relative.like
        worst = results.worst_logits([measured_on[like.name]])
        tower = TOWERS[like.vision].name.partition("-")[2]
        lines.append(_row(relative.name, like.language.series.name, f"as {like.name}", tower, relative.format, worst))
    return "\n".join([*lines, END])


def _group(member: FamilyMember) -> tuple[str, str, str]:
    return member.generation, "-Flash" if member.flash else "", member.language.series.backbone


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def matrix_in(readme: str) -> str:
    """The part of a README that this file writes, with its marks."""
    return readme[readme.index(BEGIN) : readme.index(END) + len(END)]


def main(parity_json: str) -> None:
    results = Results.read(Path(parity_json))
    SUPPORT.write_text(support_page(results), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(readme.replace(matrix_in(readme), readme_matrix(results)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
