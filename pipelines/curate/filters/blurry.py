"""Filter of blurred images."""

from typing import ClassVar

import numpy as np

from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait


@configuration("filters.blurry")
class Blurry:
    """Drop images whose Laplacian has too little variance."""

    min_sharpness: float = 12.0
    """Variance of the Laplacian of luma (0–255) at a short side of 256 px. Of 105 DreamBooth photos
    blurred by 2 px at that size 96 are below 12; the original with the lowest sharpness has 99."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Images without a sharp edge"
    traits: ClassVar[tuple[Trait, ...]] = ("can_skip",)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["sharpness"] < self.min_sharpness, bool)
