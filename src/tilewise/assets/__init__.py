"""Sample pictures and videos that ship with the package, under the names that examples in the field use."""

from tilewise.assets.image import ImageAsset
from tilewise.assets.video import VideoAsset

__all__ = ["ImageAsset", "VideoAsset"]
