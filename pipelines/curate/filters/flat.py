"""Filter of images of one colour."""

from typing import ClassVar

import numpy as np

from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait


@configuration("filters.flat")
class Flat:
    """Drop images whose luma hardly varies."""

    min_luma_std: float = 6.0
    """Standard deviation of luma (0–255); DreamBooth photos have 19–95."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Images of nearly one colour"
    traits: ClassVar[tuple[Trait, ...]] = ("can_skip",)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["luma_std"] < self.min_luma_std, bool)
