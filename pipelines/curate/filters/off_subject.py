"""Filter of photos that show another subject."""

from typing import ClassVar

import numpy as np

from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait


@configuration("filters.off_subject")
class OffSubject:
    """Drop photos that resemble the other photos of their subject far less than those resemble each other.

    With one stray photo put among each subject of 20 of DreamBooth, by the default embedder: 95 % of the strays of
    another class and 70 % of those of the same class (another dog) are found, and no photo of the subject is dropped.
    """

    max_similarity: float = 0.5
    """A photo with at least this median similarity to the others is kept."""
    min_gap: float = 0.22
    """A photo is dropped only if its median is this much below the median of the subject's photos."""
    min_photos: int = 3
    """Subjects with fewer photos are kept: of two, either could be the wrong one."""

    scope: ClassVar[Scope] = "subject"
    summary: ClassVar[str] = "Photos that resemble the other photos of their subject too little"
    traits: ClassVar[tuple[Trait, ...]] = ("can_skip", "compares_embeddings")

    def drop(self, photos: Photos) -> np.ndarray:
        n = len(photos)
        if n < self.min_photos:
            return np.zeros(n, bool)
        others_NM = photos.similarity[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        typical_N = np.median(others_NM, axis=1)
        return np.asarray((typical_N < self.max_similarity) & (typical_N < np.median(typical_N) - self.min_gap), bool)
