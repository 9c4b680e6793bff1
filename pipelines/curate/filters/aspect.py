"""Filter of banners and strips, of which a centre crop leaves too little."""

from typing import ClassVar

import numpy as np

from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait


@configuration("filters.aspect")
class Aspect:
    """Drop images whose long side is more than ``max_ratio`` times the short side."""

    max_ratio: float = 3.0
    """Maximum ratio: 16:9 is 1.78, a panorama 3 and more. UniWorld keeps up to 4:3."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Images that are too long and thin"
    traits: ClassVar[tuple[Trait, ...]] = ("can_skip",)

    def drop(self, photos: Photos) -> np.ndarray:
        width, height = photos["width"], photos["height"]
        return np.asarray(np.maximum(width, height) > self.max_ratio * np.minimum(width, height), bool)
