"""Samples that are prepared once and kept in memory, for sets that fit, such as a customer's photos.

Order and values are the same as with Ray Data, and Ray is not needed.
"""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lookalike.training.epoch_plan import PADDING, EpochPlan
from pipelines.train.samples import Columns, TripletSource, of_step, prepare, without_padding

_CHUNK = 16  # samples that a thread prepares at a time
_MANY = 4096  # samples that are worth processes of their own
_CHUNK_OF_MANY = 64
_LOGGED_EVERY = 8192

log = logging.getLogger(__name__)

T = TypeVar("T")


class KeptSamples:
    """The samples of ``source`` that were requested, as :func:`~pipelines.train.samples.prepare` returns them."""

    def __init__(self, source: TripletSource) -> None:
        self._source = source
        self._kept: dict[int, Columns] = {}  # the columns of one row, by its number

    def take(self, indices: npt.NDArray[np.int64]) -> Columns:
        """Return what ``prepare(source, indices)`` returns; samples that are in memory are not read again."""
        rows = np.where(indices == PADDING, 0, indices)
        self.learn(rows)
        samples = [self._kept[row] for row in rows.tolist()]
        return without_padding({name: np.concatenate([s[name] for s in samples]) for name in samples[0]}, indices)

    def learn(self, rows: npt.NDArray[np.int64], processes: int = 1) -> None:
        """Prepare those of ``rows`` that are not in memory; many at once in ``processes`` processes.

        These import the main module again, which therefore needs a guard (``if __name__ == …``).
        """
        rows = np.array([row for row in np.unique(rows).tolist() if row not in self._kept], np.int64)
        many = len(rows) >= _MANY
        size = _CHUNK_OF_MANY if many else _CHUNK
        chunks = [rows[first : first + size] for first in range(0, len(rows), size)]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn) if many else ThreadPoolExecutor(os.cpu_count()) as executor:
            prepared = executor.map(partial(prepare, self._source), chunks)
            for chunk, columns in zip(chunks, prepared, strict=True):
                for place, row in enumerate(chunk.tolist()):
                    self._kept[row] = {name: values[place : place + 1] for name, values in columns.items()}
                if many and len(self._kept) % _LOGGED_EVERY < len(chunk):
                    log.info("%d samples are prepared", len(self._kept))


def kept_batches(
    source: TripletSource, plan: EpochPlan, steps: range, rank: int, world_size: int, batch_size: int
) -> Iterator[Columns]:
    """Yield the batches of :func:`~pipelines.train.data.rank_batches` from memory; a thread is one step ahead."""
    kept = KeptSamples(source)
    epoch = steps[: plan.steps_per_epoch]
    if len(epoch) * plan.batch_size >= _MANY * world_size:
        due = np.concatenate([plan.rank_slots(step, rank, world_size, batch_size) for step in epoch])
        kept.learn(due[due != PADDING], max(1, len(os.sched_getaffinity(0)) // world_size))
    slots = (plan.rank_slots(step, rank, world_size, batch_size) for step in steps)
    for step, taken in zip(steps, ahead(kept.take(part) for part in slots), strict=True):
        columns = of_step(taken, step)
        for first in range(0, len(columns["weight"]), batch_size):
            yield {name: values[first : first + batch_size] for name, values in columns.items()}


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items; from the first ``next`` on, a thread computes one item ahead of the caller."""
    with ThreadPoolExecutor(1) as thread:
        end = object()
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
