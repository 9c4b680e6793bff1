"""Layout: divide the subjects into training and validation, and each range of them into the units of materialise."""

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from pipelines.actors import Columns
from pipelines.curate.config import PlanConfig
from pipelines.curate.materialised import Layout
from pipelines.curate.work import StageWork

_ALL = 2.0  # above each split hash: all subjects are validation


def divide(work: StageWork, partition: int) -> Columns:
    """Divide a range of subjects into units of about ``shards.shard_mib`` of images, and write where they begin.

    The units cover the whole range, so that each image that came in is in one unit. Returns a row for each of the
    lowest split hashes of the range (NaN if it has no subject): ``split_hash``, and the number of ``units``.
    """
    span = work.span(partition)
    subjects = work.read_plan(partition, "subjects")
    hashes, sizes = subjects["subject_hash"].to_pylist(), subjects["bytes"].to_pylist()
    bounds = _bounds(span, hashes, sizes, work.config.shards.shard_mib << 20)
    work.dataset.write(work.workspace.layout(partition), canonical_json({"bounds": bounds}).encode())
    wanted = work.config.plan.min_validation_subjects + 1
    lowest = np.unique(work.split_hashes(subjects, span))[:wanted] if len(subjects) else np.array([np.nan])
    return {"split_hash": lowest, "units": np.full(len(lowest), len(bounds) - 1)}


def join(work: StageWork, tables: Iterable[pa.Table]) -> Layout:
    """Join what :func:`divide` has returned for each partition, with its ``unit``, in any order."""
    lowest: list[float] = []
    units = np.zeros(work.partitions, np.int64)
    for table in tables:
        units[table["unit"][0].as_py()] = table["units"][0].as_py()
        hashes = {value for value in table["split_hash"].to_pylist() if value == value}
        lowest = heapq.nsmallest(work.config.plan.min_validation_subjects + 1, {*lowest, *hashes})
    held_out = work.config.filters.held_out
    only_targets = held_out is not None and held_out.role == "targets"
    return Layout(_ALL if only_targets else split_cut(work.config.plan, lowest), np.cumsum(units))


def split_cut(plan: PlanConfig, lowest: Sequence[float]) -> float:
    """Return the split hash below which a subject is validation, from the ``lowest`` split hashes, ascending.

    It is the configured fraction, raised if fewer than ``min_validation_subjects`` are below it, but one subject always
    remains for training. Linked subjects have the same split hash and count as one.
    """
    wanted = min(plan.min_validation_subjects, max(0, len(lowest) - 1))
    enough = float(np.nextafter(lowest[wanted - 1], 1)) if wanted else 0.0
    return max(plan.validation_fraction, enough)


def _bounds(span: tuple[int, int], hashes: list[int], sizes: list[int], size: int) -> list[int]:
    """Return the first subject hash of each unit, and the end of the range."""
    bounds, filled = [span[0]], 0
    for i, place in enumerate(hashes):
        if filled and filled + sizes[i] > size and place != hashes[i - 1]:
            bounds.append(place)
            filled = 0
        filled += sizes[i]
    return [*bounds, span[1]]
