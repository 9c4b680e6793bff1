"""The epoch plan: which sample each (step, slot) gets, a pure function of the seed, for any number of workers."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

PADDING = -1  # a slot after the epoch's last sample: computed with weight 0, so that all ranks run the same steps


@dataclass(frozen=True)
class EpochPlan:
    """Each epoch visits each of ``num_samples`` samples once, in an order that depends on (seed, epoch)."""

    num_samples: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch; the last one may have padding."""
        return -(-self.num_samples // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch of the 0-based global ``step``."""
        return step // self.steps_per_epoch

    def slots(self, step: int) -> npt.NDArray[np.int64]:
        """Return the sample indices of ``step``: int64 [batch_size]; ``PADDING`` ends an epoch's last step."""
        order = _order(self.num_samples, self.seed, self.epoch_of(step))
        first = (step % self.steps_per_epoch) * self.batch_size
        taken = order[first : first + self.batch_size]
        return np.pad(taken, (0, self.batch_size - len(taken)), constant_values=PADDING)

    def rank_slots(self, step: int, rank: int, world_size: int, micro_batch_size: int = 1) -> npt.NDArray[np.int64]:
        """Return the contiguous share of ``step`` that ``rank`` computes: int64 [n], the same n on every rank.

        n is the smallest multiple of ``micro_batch_size`` with room for the batch on all ranks; surplus slots are
        ``PADDING``.
        """
        share = -(-self.batch_size // (world_size * micro_batch_size)) * micro_batch_size
        padding = share * world_size - self.batch_size
        slots = np.pad(self.slots(step), (0, padding), constant_values=PADDING)
        return slots[rank * share : (rank + 1) * share]


@lru_cache(maxsize=2)
def _order(num_samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_samples).astype(np.int64)
