"""The same photograph in another size, quality or crop."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lookalike.errors import ConfigError
from pipelines.curate.filters.base import Photos, Scope


@dataclass(frozen=True)
class NearDuplicate:
    """Keeps the largest of the photographs of a subject that are copies of each other.

    Two witnesses are heard together. Perceptual hashes of different plain subjects come as near as copies do, so a hit
    needs the embedding's word too; and a picture with little structure gets another hash by being saved again, so the
    farther apart two hashes are, the surer the embedding has to be.
    """

    max_hash_distance: int = 12
    """Bits of 64 up to which ``min_similarity`` is enough. Of 105 DreamBooth photographs saved again at quality 60, 103
    keep within 2 bits and two differ in 20 and 24 (similarity .995 and more); cut by 1/40 at each edge, 103 keep within
    12. Two different photographs of one subject have 14 or more."""
    min_similarity: float = 0.92
    """Cosine similarity of the embeddings from which on two photos with near hashes are one."""
    similarity_per_bit: float = 0.004
    """How much more is asked for each further bit: .968 at 24 bits, and 1 at 32, where unrelated hashes lie. Different
    photographs of one subject reach .959 at 30 bits, where .992 is asked."""

    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        if self.similarity_per_bit <= 0:
            raise ConfigError(
                "filters.near_duplicate.similarity_per_bit asks for nothing",
                value=self.similarity_per_bit,
                fix="use a value above 0; 1 lets no hash differ in more than max_hash_distance bits",
            )

    def copies(self, photos: Photos) -> np.ndarray:
        """Which two photos are one: bool [N, N], symmetric, true on the diagonal."""
        hashes = photos["phash"].astype(np.uint64)
        distance_NN = np.bitwise_count(hashes[:, None] ^ hashes[None, :]).astype(np.int64)
        beyond_NN = np.maximum(0, distance_NN - self.max_hash_distance)
        asked_NN = np.round(self.min_similarity + self.similarity_per_bit * beyond_NN, 3)
        return np.asarray(photos.similarity >= asked_NN.astype(np.float32), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        copies_NN = self.copies(photos)
        largest_first = np.argsort(-(photos["width"].astype(np.int64) * photos["height"]), kind="stable")
        dropped = np.zeros(len(photos), bool)
        kept: list[int] = []
        for i in largest_first:
            dropped[i] = copies_NN[i, kept].any()
            if not dropped[i]:
                kept.append(int(i))
        return dropped
