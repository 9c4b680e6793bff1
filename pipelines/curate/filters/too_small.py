"""Filter of images with too few pixels."""

from typing import ClassVar

import numpy as np

from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait


@configuration("filters.too_small")
class TooSmall:
    """Drop images whose short side is below the minimum."""

    min_short_side_px: int = 64
    """Use the size of your training images: ``mini`` has 64. Published sets use 480 (OpenS2V-5M) to 1024 (UniWorld)."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Images whose short side is too small"
    traits: ClassVar[tuple[Trait, ...]] = ("can_skip",)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(np.minimum(photos["width"], photos["height"]) < self.min_short_side_px, bool)
