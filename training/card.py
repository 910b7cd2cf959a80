"""Measure a checkpoint folder and write its model card."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from evaluate import load_checkpoint, measure, table
from render import FONT_FILES, LARGEST_TEXT, SMALLEST_TEXT
from sample import Level
from tasks import SMALL_PRINT
from vocabulary import COLORS, PLACES, SHAPES, WORDS

CARD = """# Tilewise demo checkpoint

A very small InternVL ({parameters:.1f} million parameters) in the original format, trained from nothing on drawn
pictures. It is there so that Tilewise can be tried and tested end to end without a download: tiling, several
pictures, several turns, Chinese, boxes.

**It is not a useful vision-language model.** It knows the tasks below, on pictures like those it was trained on, and
nothing else. Photographs, other words, other fonts and free conversation are beyond it.

## What it answers

- a word in small letters, or a number of up to three digits, printed in {smallest} to {largest} pixels in a
  112-pixel picture;
- the color and shape of things, how many there are (1 to 9), and in which of nine places they are;
- boxes as `<ref>red circle</ref><box>[[x1,y1,x2,y2]]</box>`, in thousandths of the picture; the things stand on a
  grid of 125 thousandths;
- comparisons of two pictures (`Image-1: <image>`, `Image-2: <image>`): more things, larger number, same word, color or
  shape;
- small print of {small_from} to {small_to} pixels in a picture of 448 x 336 pixels, which is cut into twelve tiles and
  a thumbnail. Each text lies inside one tile; in the thumbnail it is too small to read;
- sketches of the web chat's pad, drawn by hand with a thick brush on white: one shape, a number of one or two digits,
  or up to seven shapes of a sort ("What did I draw?", "What number is this?", "How many stars are there?");
- questions about one thing in Chinese, answered in Chinese;
- up to three questions about the same pictures in one conversation.

Words: {words}.

Colors: {colors}. Shapes: {shapes}. Places: {places}.

Fonts: {fonts}.

## Accuracy

Exact match on held-out samples (a seed that training never uses; two hundred a task, so a figure is uncertain by about
three points). The first turn of a sample counts for its task, later turns count as follow_up, each after the right
earlier answers. Weights as shipped (bfloat16), the training code's own forward pass. Small numbers of these samples
were also watched during the run, and the pictures were made easier partly because of them (see below).

{normal}

With at most one tile a picture (`--max-tiles 1`), which shows what tiling is for:

{single}

## How it was trained

Seed 1, next-token loss on the answers only, Muon for the matrices and AdamW for the rest, bfloat16 autocast, two CPU
cores that other work shared. The code is in `training/`, the curriculum in `training/plan.json`. First 5700 steps,
316034 samples, in 68 minutes; then from the weights of that run to step {steps}, {samples} samples in {minutes:.0f}
minutes, with sketches, and with more counting and small print:

```bash
python training/train.py runs/first --processes 2 --steps 5700 --fall 0.45
python training/export.py runs/first/state.pt runs/first/checkpoint
{command}
```

The weights of the first run come from one that was stopped and resumed: `plan.json` was extended and the end of the run
moved while it went on, at step 2100 the texts were narrowed from seven fonts with capitals to the four fonts above, and
at step 2700 the pictures of several shapes from four to three and small print from up to four texts to one. The second
run ended at step 8900 first, and was lengthened since counting and small print were short of nine in ten. The commands
follow the same plan with the final pictures; they do not give the same weights bit for bit.
"""


CONTINUED = (
    "python training/train.py runs/demo --start runs/first/checkpoint --first-step 5700 --processes 2 --steps 10400 "
    "--rate 1.2e-3 --fall 0.6"
)


def write_card(folder: Path, state_file: Path, per_task: int, command: str) -> None:
    """Measure with and without tiling and write README.md into the folder."""
    model, tokenizer = load_checkpoint(folder)
    state = torch.load(state_file, map_location="cpu")
    cpu = torch.device("cpu")
    text = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        smallest=SMALLEST_TEXT,
        largest=LARGEST_TEXT,
        small_from=SMALL_PRINT.sizes[0],
        small_to=SMALL_PRINT.sizes[1],
        words=", ".join(WORDS),
        colors=", ".join(COLORS),
        shapes=", ".join(SHAPES),
        places=", ".join(PLACES),
        fonts=", ".join(name.removesuffix(".ttf") for name in FONT_FILES),
        normal=table(measure(model, tokenizer, per_task, Level(), 12, cpu)),
        single=table(measure(model, tokenizer, per_task, Level(), 1, cpu)),
        steps=state["step"],
        samples=state["samples"],
        minutes=state["seconds"] / 60,
        command=command,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint folder")
    parser.add_argument("state", type=Path, help="state.pt of the run")
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--command", default=CONTINUED)
    arguments = parser.parse_args()
    write_card(arguments.folder, arguments.state, arguments.per_task, arguments.command)


if __name__ == "__main__":
    main()
