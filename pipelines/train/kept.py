"""Samples that are prepared once and kept in memory: for sets that fit, such as a customer's photographs.

They come in the same order and with the same values as through Ray Data, and no Ray is needed.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from lookalike.training.plan import PADDING, EpochPlan
from pipelines.train.samples import Columns, TripletSource, prepare

_CHUNK = 16  # samples that a thread prepares at a time


class KeptSamples:
    """Every sample of ``source`` that was asked for, as :func:`~pipelines.train.samples.prepare` made it."""

    def __init__(self, source: TripletSource) -> None:
        self._source = source
        self._rows = source.table().num_rows
        self._known = np.zeros(self._rows, bool)
        self._columns: Columns = {}

    def take(self, indices: npt.NDArray[np.int64]) -> Columns:
        """As ``prepare(source, indices)``; what was asked for before is not read again."""
        rows = np.where(indices == PADDING, 0, indices)
        self._learn(np.unique(rows[~self._known[rows]]))
        columns = {name: values.take(rows, axis=0) for name, values in self._columns.items()}
        return {**columns, "weight": (indices != PADDING).astype(np.float32)}

    def _learn(self, rows: npt.NDArray[np.int64]) -> None:
        chunks = [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            prepared = threads.map(lambda chunk: prepare(self._source, chunk), chunks)
            for chunk, columns in zip(chunks, prepared, strict=True):
                for name, values in columns.items():
                    self._column(name, values)[chunk] = values
        self._known[rows] = True

    def _column(self, name: str, like: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        if name not in self._columns:
            dtype = object if like.dtype.kind == "U" else like.dtype  # texts of any length
            self._columns[name] = np.zeros((self._rows, *like.shape[1:]), dtype)
        return self._columns[name]


def kept_batches(
    source: TripletSource, plan: EpochPlan, steps: range, rank: int, world_size: int, batch_size: int
) -> Iterator[Columns]:
    """As :func:`~pipelines.train.data.rank_batches`, from memory; a thread is one step ahead of the caller."""
    kept = KeptSamples(source)

    def load(step: int) -> Columns:
        return kept.take(plan.rank_slots(step, rank, world_size, batch_size))

    with ThreadPoolExecutor(1) as ahead:
        loading = (ahead.submit(load, step) for step in steps)  # not before it is asked for
        following = next(loading, None)
        for step in steps:
            assert following is not None
            columns, following = following.result(), next(loading, None)
            for first in range(0, len(columns["weight"]), batch_size):
                part = {name: values[first : first + batch_size] for name, values in columns.items()}
                yield {**part, "step": np.full(len(part["weight"]), step)}
