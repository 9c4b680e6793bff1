"""Filter of subjects with one photo, which cannot be paired."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope, Trait


@dataclass(frozen=True)
class SinglePhoto:
    """Drop the photo of a subject that has only one left."""

    scope: ClassVar[Scope] = "subject"
    summary: ClassVar[str] = "The only photo of a subject"
    traits: ClassVar[tuple[Trait, ...]] = ()

    def drop(self, photos: Photos) -> np.ndarray:
        return np.full(photos.shape, photos.shape[1] < 2)
