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
        subjects, n = photos.shape
        if n < max(2, self.min_photos):
            return np.zeros(photos.shape, bool)
        after_first = photos.similarity.reshape(subjects, n * n)[:, 1:]  # the diagonal is then each (n + 1)th value
        others_BNM = after_first.reshape(subjects, n - 1, n + 1)[:, :, :-1].reshape(subjects, n, n - 1)
        # a copy, which the median may reorder
        typical_BN = np.median(others_BNM, axis=2, overwrite_input=True)
        gap_BN = np.median(typical_BN, axis=1, keepdims=True) - self.min_gap
        return np.asarray((typical_BN < self.max_similarity) & (typical_BN < gap_BN), bool)
