"""The epoch plan: which sample each (step, slot) gets, a pure function of the seed, for any number of workers.

Slot i of epoch e, counted over its steps, gets the sample ``Permutation(num_samples, (seed, e))(i)``. It is computed
for the slots of a step, so the memory of a plan does not depend on the number of samples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.data.permutation import Permutation

ORDER = "permutation-1"
"""Name of this order in a run's identity: a run that began with another one cannot continue with this."""
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
        first = (step % self.steps_per_epoch) * self.batch_size
        places = np.arange(first, min(first + self.batch_size, self.num_samples))
        taken = Permutation(self.num_samples, (self.seed, self.epoch_of(step)))(places)
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
