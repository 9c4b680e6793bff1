"""Ray Data for training: steps, which tasks on any node turn into prepared samples.

The epoch plan says which samples a step holds and which of them a rank computes, so the pixels a worker sees depend on
(seed, step, rank) and on nothing that a restart or another cluster could change.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray
import ray.data

from lookalike.training.plan import EpochPlan
from pipelines.pace import pace
from pipelines.train.samples import Columns, TripletSource, prepare

_STEPS_PER_TASK = 8
_STEPS_PER_DATASET = 1024  # Ray Data holds every task of a data set from its start: 100,000 steps took it half a minute
_LOADERS_PER_RANK = 2
_LOADER_CPUS = 0.25  # decoding waits for storage most of the time; and two workers on two CPUs must leave room


def rank_batches(
    source: TripletSource, plan: EpochPlan, steps: range, rank: int, world_size: int, batch_size: int
) -> Iterator[Columns]:
    """What ``rank`` computes in ``steps``, in their order, ``batch_size`` samples (which divides its share) at a time.

    Loaders start at the first ``next``. Whoever asks needs a running Ray, and may be any of its processes.
    """
    for first in range(0, len(steps), _STEPS_PER_DATASET):
        part = steps[first : first + _STEPS_PER_DATASET]
        # A split into one part runs its executor in an actor of its own: in the rank's process its thread would hold
        # the interpreter's lock while the rank trains.
        (shard,) = _dataset(source, plan, part, rank, world_size).streaming_split(1)
        yield from shard.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)


def _dataset(source: TripletSource, plan: EpochPlan, steps: range, rank: int, world_size: int) -> "ray.data.Dataset":
    """``plan.batch_size / world_size`` rows for each step."""

    def load(batch: Columns) -> Iterator[Columns]:
        for step in batch["step"]:
            columns = prepare(source, plan.rank_slots(int(step), rank, world_size))
            yield {**columns, "step": np.full(len(columns["weight"]), step)}

    # Numbers that lie there already: a read task would only keep one more process busy.
    tasks = [steps[first : first + _STEPS_PER_TASK] for first in range(0, len(steps), _STEPS_PER_TASK)]
    numbers = ray.data.from_arrow([pa.table({"step": np.array(task)}) for task in tasks])
    loaders = ray.data.TaskPoolStrategy(size=_LOADERS_PER_RANK)
    dataset = numbers.map_batches(load, batch_size=None, num_cpus=_LOADER_CPUS, compute=loaders)
    context = dataset.context
    context.execution_options.preserve_order = True
    pace(dataset)
    context.enable_progress_bars = False  # the training logs its own progress
    context.execution_no_progress_timeout_s = -1  # a validation may take long; the ranks' watchdog looks for hangs
    return dataset
