"""Filter of photos that no other photo of their subject can be paired with."""

from typing import ClassVar

import numpy as np

from lookalike.errors import ConfigError
from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait


@configuration("filters.no_pair")
class NoPair:
    """The similarity band in which two photos of a subject are a pair. Drop photos that are in no pair."""

    min_similarity: float = 0.4
    """Below it two photos may show different subjects."""
    max_similarity: float = 0.95
    """Above it pose and crop are the same, and a model would learn to copy."""

    scope: ClassVar[Scope] = "subject"
    summary: ClassVar[str] = "Photos whose similarity to every other photo of the subject is outside the band"
    traits: ClassVar[tuple[Trait, ...]] = ("compares_embeddings",)

    def __post_init__(self) -> None:
        if not -1 <= self.min_similarity < self.max_similarity <= COPY_PASTE_CAP:
            raise ConfigError(
                "filters.no_pair is not a similarity band",
                value=[self.min_similarity, self.max_similarity],
                fix=f"choose -1 <= min_similarity < max_similarity <= {COPY_PASTE_CAP}",
            )

    def pairs(self, photos: Photos) -> np.ndarray:
        """Return which two photos of a subject are a pair: bool [B, N, N], symmetric, false on the diagonal and for two
        equal files."""
        similarity_BNN, contents_BN = photos.similarity, photos.contents
        in_band_BNN = (similarity_BNN >= self.min_similarity) & (similarity_BNN <= self.max_similarity)
        return np.asarray(in_band_BNN & (contents_BN[:, :, None] != contents_BN[:, None, :]), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(~self.pairs(photos).any(axis=2), bool)


COPY_PASTE_CAP = 0.98
"""Upper bound of ``max_similarity`` (SynCD's bound)."""
