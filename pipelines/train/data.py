"""Ray Data for training: tasks on any node prepare the samples of each step.

The epoch plan says which samples a step holds and which of them a rank computes, so the pixels a worker sees depend on
(seed, step, rank) alone, and not on restarts or the cluster.
"""

import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from lookalike.training.epoch_plan import EpochPlan
from pipelines.train.samples import Columns, TripletSource, of_step, prepare

_STEPS_PER_TASK = 8
_STEPS_PER_DATASET = 1024  # Ray Data holds every task of a data set from its start: 100,000 steps took it half a minute
_LOADERS_PER_RANK = 4  # at most, and half of a rank's share of the cores: each starts a process
_PACE_S = 0.02
_LOADER_CPUS = 0.25  # decoding mostly waits for storage; and two workers on two CPUs must leave room


class PacedExecution(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest between its rounds.

    While a consumer is slower than its loaders, finished blocks make ``ray.wait`` return at once and the loop spins: on
    two cores it took as much time as training.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(_PACE_S)


def rank_batches(
    source: TripletSource, plan: EpochPlan, steps: range, rank: int, world_size: int, batch_size: int
) -> Iterator[Columns]:
    """Yield the samples of ``rank`` in ``steps`` in order, ``batch_size`` samples at a time.

    Loaders start at the first ``next``. Needs a running Ray; any of its processes may call it.
    """
    for first in range(0, len(steps), _STEPS_PER_DATASET):
        part = steps[first : first + _STEPS_PER_DATASET]
        # A split into one part runs its executor in an actor of its own: in the rank's process its thread would hold
        # the interpreter's lock while the rank trains.
        (shard,) = _dataset(source, plan, part, rank, world_size, batch_size).streaming_split(1)
        yield from shard.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)


def _dataset(
    source: TripletSource, plan: EpochPlan, steps: range, rank: int, world_size: int, batch_size: int
) -> "ray.data.Dataset":
    def load(batch: Columns) -> Iterator[Columns]:
        for step in batch["step"]:
            slots = plan.rank_slots(int(step), rank, world_size, batch_size)
            yield of_step(prepare(source, slots), int(step))

    # Items in memory: tasks that read, or that inspect Arrow blocks, would keep one more process busy.
    items, tasks = [{"step": step} for step in steps], -(-len(steps) // _STEPS_PER_TASK)
    numbers = ray.data.from_items(items, override_num_blocks=tasks)
    share = int(ray.cluster_resources()["CPU"] / world_size / 2)
    loaders = ray.data.TaskPoolStrategy(size=max(1, min(_LOADERS_PER_RANK, share)))
    dataset = numbers.map_batches(load, batch_size=None, num_cpus=_LOADER_CPUS, compute=loaders)
    context = dataset.context
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, PacedExecution]
    context.enable_progress_bars = False  # the training logs its own progress
    context.execution_no_progress_timeout_s = -1  # a validation may take long; the ranks' watchdog looks for hangs
    return dataset
