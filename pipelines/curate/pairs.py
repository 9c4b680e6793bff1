"""Choose the reference sets of each target photo of a subject, from similarities alone."""

from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np

from pipelines.curate.config import PlanConfig

# Legend: N photos of one subject.


def reference_sets(
    similarity_NN: np.ndarray, pairs_NN: np.ndarray, target_order: list[int], config: PlanConfig
) -> list[list[tuple[int, ...]]]:
    """Return for each of the N photos as a target its sets of 1 to ``max_references`` reference photos.

    Every pair is used in both directions if the maxima allow it. A target gets the least similar references first:
    within the band they differ most in pose. If the subject has more triplets than ``max_triplets_per_subject``, all
    targets lose their last sets first, beginning with those at the end of ``target_order``.
    """
    needed = config.max_triplets_per_target * config.max_references  # candidates; enough for sets that differ
    sets = []
    for similarity_N, paired_N in zip(similarity_NN, pairs_NN, strict=True):
        candidates = _by_difference(similarity_N, paired_N, needed)
        sets.append(list(islice(_sets_of(candidates, config), config.max_triplets_per_target)))
    left = config.max_triplets_per_subject
    kept: list[list[tuple[int, ...]]] = [[] for _ in sets]
    for turn in range(config.max_triplets_per_target):
        for target in target_order:
            if left and turn < len(sets[target]):
                kept[target].append(sets[target][turn])
                left -= 1
    return kept


def _by_difference(similarity_N: np.ndarray, paired_N: np.ndarray, needed: int) -> list[int]:
    """Return the first ``needed`` partners, the least similar first."""
    candidates = np.flatnonzero(paired_N)
    order = np.argsort(similarity_N[candidates], kind="stable")[:needed]
    return [int(i) for i in candidates[order]]


def _sets_of(candidates: list[int], config: PlanConfig) -> Iterator[tuple[int, ...]]:
    """Yield different sets in turns of decreasing size, which use the candidates evenly."""
    if not candidates:
        return
    largest = min(config.max_references, len(candidates))
    around = cycle(candidates)
    used: set[frozenset[int]] = set()
    for size in islice(cycle(range(largest, 0, -1)), 4 * largest * len(candidates)):
        chosen = tuple(islice(around, size))
        if frozenset(chosen) not in used:
            used.add(frozenset(chosen))
            yield chosen
