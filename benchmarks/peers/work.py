"""The work that every peer is given: sizes, and prompts and pictures that follow from a seed.

Runs in every peer's environment: standard library and Pillow only. No prompt or picture comes twice, unless a row is
about just that, so that no cache helps.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw


@dataclass(frozen=True)
class Sizes:
    """Lengths in tokens, sizes in pixels."""

    question: int = 32
    answer: int = 128
    repeats: int = 3
    tile: tuple[int, int] = (448, 448)
    large: tuple[int, int] = (1792, 1344)
    large_tiles: int = 13
    """4 columns x 3 rows and the thumbnail."""
    streams: int = 8
    text_prompt: int = 256
    text_answer: int = 128
    picture_answer: int = 64
    quoted: int = 256
    photos: int = 8
    photo: tuple[int, int] = (2304, 1728)
    """4 megapixels."""

    @property
    def context(self) -> int:
        """Tokens that the longest prompt and its answer take."""
        longest = 256 * self.large_tiles + self.question + self.answer
        return 512 * (max(longest, 2 * self.quoted) // 512 + 1)

    @property
    def stream_context(self) -> int:
        longest = max(self.text_prompt + self.text_answer, 256 + self.question + self.picture_answer)
        return 256 * (longest // 256 + 1)


FULL = Sizes()
QUICK = Sizes(
    answer=16,
    repeats=1,
    large=(896, 448),
    large_tiles=3,
    streams=2,
    text_prompt=64,
    text_answer=16,
    picture_answer=8,
    quoted=48,
    photos=2,
)


@dataclass(frozen=True)
class Prompt:
    """A question of a user, about a picture or about nothing."""

    question: str
    picture: Image.Image | None = None

    def chat(self, picture: str) -> str:
        """As the model reads it; `picture` is what a peer writes where a picture stands."""
        shown = f"{picture}\n" if self.picture else ""
        return f"<|im_start|>user\n{shown}{self.question}<|im_end|>\n<|im_start|>assistant\n"


class Work:
    """An endless supply of one task's prompts. `words` are one token each, with the blank before them."""

    def __init__(self, sizes: Sizes, words: Sequence[str], seed: str) -> None:
        self.sizes = sizes
        self._words = words
        self._random = random.Random(seed)

    def text(self, tokens: int) -> str:
        return " " + " ".join(self._random.choices(self._words, k=tokens))

    def question(self, picture: Image.Image | None = None) -> Prompt:
        return Prompt(self.text(self.sizes.question), picture)

    def tile(self) -> Image.Image:
        return self.picture(*self.sizes.tile)

    def large(self) -> Image.Image:
        return self.picture(*self.sizes.large)

    def photo(self) -> bytes:
        """A JPEG as cameras write it: noise over a smooth picture, 4:2:0."""
        file = io.BytesIO()
        picture = self.picture(*self.sizes.photo)
        noise = Image.effect_noise(picture.size, 24).convert("RGB")
        Image.blend(picture, noise, 0.15).save(file, "JPEG", quality=90)
        return file.getvalue()

    def digits(self, count: int) -> str:
        return "".join(self._random.choices("0123456789", k=count))

    def picture(self, width: int, height: int) -> Image.Image:
        """Smooth colours and a dozen rectangles."""
        colours = self._random.randbytes(16 * 12 * 3)
        picture = Image.frombytes("RGB", (16, 12), colours).resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y = self._random.randrange(width), self._random.randrange(height)
            draw.rectangle([x, y, x + width // 8, y + height // 9], fill=tuple(self._random.randbytes(3)))
        return picture
