"""Filter of images without a subject."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope, Trait


@dataclass(frozen=True)
class Unlabelled:
    """Drop images whose ``key.json`` is missing, broken, or has no subject."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Images without a subject"
    traits: ClassVar[tuple[Trait, ...]] = ()

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["subject"] == "", bool)
