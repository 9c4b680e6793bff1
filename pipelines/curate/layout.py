"""Layout: divide the subjects into training and validation, and into shards. One partition is in memory at a time."""

import heapq
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lookalike.data.triplets import Split
from pipelines.curate.work import ShardPlan, StageWork
from pipelines.curate.workspace import triplet_shard


def split_cut(work: StageWork) -> float:
    """Return the split hash below which a subject is validation.

    It is the configured fraction, raised if fewer than ``min_validation_subjects`` are below it, but one subject always
    remains for training. Linked subjects have the same split hash and count as one.
    """
    plan = work.config.plan
    lowest: list[float] = []
    for partition in range(work.partitions):
        hashes = work.split_hashes(work.read_plan(partition, "subjects"), work.span(partition)).tolist()
        lowest = heapq.nsmallest(plan.min_validation_subjects + 1, {*lowest, *hashes})
    wanted = min(plan.min_validation_subjects, max(0, len(lowest) - 1))
    enough = float(np.nextafter(lowest[wanted - 1], 1)) if wanted else 0.0
    return max(plan.validation_fraction, enough)


def plan_shards(work: StageWork) -> list[ShardPlan]:
    """Return the triplet shards of a snapshot in the order of their numbers."""
    cut = split_cut(work)
    shards: list[ShardPlan] = []
    numbers: dict[Split, int] = {"train": 0, "validation": 0}
    for partition in range(work.partitions):
        subjects = work.read_plan(partition, "subjects")
        below = work.split_hashes(subjects, work.span(partition)) < cut
        masks: dict[Split, np.ndarray] = {"train": ~below, "validation": below}
        for split, mask in masks.items():
            for span, triplets in _deal(subjects.filter(pa.array(mask)), work.config.shards.shard_mib << 20):
                name = triplet_shard(split, numbers[split])
                shards.append(ShardPlan(name, split, partition, span, cut, triplets))
                numbers[split] += 1
    return shards


def _deal(subjects: pa.Table, size: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield ranges of subject hashes of about ``size`` bytes, and the number of triplets in each."""
    hashes, lengths = subjects["subject_hash"].to_pylist(), subjects["bytes"].to_pylist()
    triplets = subjects["triplets"].to_pylist()
    first, filled, count = 0, 0, 0
    for i, place in enumerate(hashes):
        if filled and filled + lengths[i] > size and place != hashes[i - 1]:
            yield (hashes[first], place), count
            first, filled, count = i, 0, 0
        filled += lengths[i]
        count += triplets[i]
    if hashes:
        yield (hashes[first], hashes[-1] + 1), count
