"""Sample pictures that ship with the package, under the names that examples in the field use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tilewise.errors import InvalidMedia, did_you_mean

_FOLDER = Path(__file__).parent.parent / "demo" / "pictures"


@dataclass(frozen=True, slots=True)
class ImageAsset:
    """A sample picture by name: `cherry_blossom`, `stop_sign`, and those of the demo."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in self.names():
            hint = did_you_mean(self.name, self.names())
            raise InvalidMedia(f"There is no sample picture {self.name!r}; there are {', '.join(self.names())}.{hint}")

    @staticmethod
    def names() -> list[str]:
        return sorted(path.stem for path in _FOLDER.iterdir() if path.suffix in (".jpg", ".png"))

    @property
    def path(self) -> Path:
        return next(path for path in _FOLDER.iterdir() if path.stem == self.name)

    def get_path(self, ext: str = "") -> Path:
        """Return the path. `ext` has no effect: there is one file of each picture, whose name alone counts."""
        return self.path

    def read_bytes(self, ext: str = "") -> bytes:
        return self.path.read_bytes()

    def pil_image_ext(self, ext: str = "") -> Image.Image:
        return self.pil_image

    @property
    def pil_image(self) -> Image.Image:
        with Image.open(self.path) as image:
            image.load()
            return image
