"""Filter of photos that are held out of training, so that a personal model is judged on photos that it never saw."""

from typing import ClassVar, Literal

import numpy as np

from lookalike.values import Count, configuration
from pipelines.curate.filters.base import Photos, Scope, Trait
from pipelines.curate.rows import unit_hashes

Role = Literal["dropped", "targets"]


@configuration("filters.held_out")
class HeldOut:
    """Hold photos of each subject out, chosen by the hash of their bytes among those that all other filters keep.

    Two data sets of the same raw shards, one with ``role: dropped`` and one with ``role: targets``, share no target:
    the first is for training, and the second has the held-out photos as targets and only photos of the first as
    references. If photos are added to a subject, only photos that were held out before, or new ones, are held out.
    """

    photos: Count = 2
    """Photos of a subject to hold out. Of fewer than 5 photos it is one at most, and two always remain."""
    role: Role = "dropped"
    """``dropped``: no triplet has a held-out photo. ``targets``: the held-out photos are the only targets, the others
    the only references, and all triplets are of the validation split."""

    scope: ClassVar[Scope] = "subject"
    summary: ClassVar[str] = "Photos that are held out of training, to judge the model on"
    traits: ClassVar[tuple[Trait, ...]] = ()

    def drop(self, photos: Photos) -> np.ndarray:
        return self._chosen(photos) if self.role == "dropped" else np.zeros(photos.shape, bool)

    def pairs(self, photos: Photos) -> np.ndarray:
        """Return which photo may be the target (axis 1) of which reference (axis 2): bool [B, N, N]."""
        if self.role == "dropped":
            return np.ones((*photos.shape, photos.shape[1]), bool)
        chosen_BN = self._chosen(photos)
        return np.asarray(chosen_BN[:, :, None] & ~chosen_BN[:, None, :], bool)

    def _chosen(self, photos: Photos) -> np.ndarray:
        """Return which photos are held out: bool [B, N]. Equal files are held out together."""
        hashes_BN = unit_hashes(["held_out"], photos["sha256"].ravel()).reshape(photos.shape)
        order_BN = np.argsort(hashes_BN, axis=1, kind="stable")
        sorted_BN = np.take_along_axis(hashes_BN, order_BN, axis=1)
        rank_BN = np.empty(photos.shape, np.int64)
        steps_BN = np.diff(sorted_BN, axis=1, prepend=sorted_BN[:, :1]) > 0
        np.put_along_axis(rank_BN, order_BN, np.cumsum(steps_BN, axis=1), axis=1)
        different_B1 = rank_BN.max(axis=1, keepdims=True) + 1
        number_B1 = np.minimum(np.where(different_B1 < 5, 1, self.photos), np.maximum(different_B1 - 2, 0))
        return np.asarray(rank_BN < number_B1, bool)
