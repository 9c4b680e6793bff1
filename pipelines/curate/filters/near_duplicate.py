"""The same photograph in another size, quality or crop."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope


@dataclass(frozen=True)
class NearDuplicate:
    """Keeps the largest of the photographs of a subject that are copies of each other.

    Perceptual hashes of different plain subjects come as near as copies do, so a hit needs the embedding's word too.
    """

    max_hash_distance: int = 12
    """Bits of 64 in which the perceptual hashes may differ. Of 105 DreamBooth photographs, cut by 1/40 at each edge, 98
    keep within 8 bits and 103 within 12; two different photographs of one subject have 16 or more."""
    min_similarity: float = 0.92
    """Cosine similarity of the embeddings from which on two photos with near hashes are one."""

    scope: ClassVar[Scope] = "subject"

    def drop(self, photos: Photos) -> np.ndarray:
        hashes = photos["phash"].astype(np.uint64)
        distance_NN = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
        copies_NN = (distance_NN <= self.max_hash_distance) & (photos.similarity >= self.min_similarity)
        largest_first = np.argsort(-(photos["width"].astype(np.int64) * photos["height"]), kind="stable")
        dropped = np.zeros(len(photos), bool)
        kept: list[int] = []
        for i in largest_first:
            dropped[i] = copies_NN[i, kept].any()
            if not dropped[i]:
                kept.append(int(i))
        return dropped
