"""Choose the reference sets of each target photo of a subject, from similarities alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, islice

import numpy as np

from pipelines.curate.config import PlanConfig

# Legend: B subjects of N photos each, T targets = B · N (the photos of the first subject first), S reference sets,
# R references of all sets, O subjects with more triplets than are allowed.

_BLOCK = 1 << 20  # similarities that are sorted at once

Places = Callable[[np.ndarray], np.ndarray]
"""A function from the numbers of O subjects to the places of their photos in the order of targets, uint64 [O, N]. It
is called for subjects with too many triplets only."""


@dataclass(frozen=True)
class ReferenceSets:
    """The reference sets of the photos of B subjects, one after another: those of the first target first."""

    sets: np.ndarray
    """Number of sets of each target: int64 [T]."""
    sizes: np.ndarray
    """Number of references of each set: int64 [S]."""
    references: np.ndarray
    """Number of each reference among the N photos of its subject: int64 [R]."""


def reference_sets(
    similarity_BNN: np.ndarray, pairs_BNN: np.ndarray, places: Places, config: PlanConfig
) -> ReferenceSets:
    """Choose for each photo as a target its sets of 1 to ``max_references`` reference photos.

    Every pair is used in both directions if the maxima allow it. A target gets the least similar references first:
    within the band they differ most in pose. If a subject has more triplets than ``max_triplets_per_subject``, all
    targets lose their last sets first, beginning with those of the highest place.
    """
    needed = config.max_triplets_per_target * config.max_references  # candidates; enough for sets that differ
    candidates_BN = np.minimum(pairs_BNN.sum(axis=2), needed)
    sets_BN = np.zeros_like(candidates_BN)
    for count in np.unique(candidates_BN):
        sets_BN[candidates_BN == count] = len(_pattern(int(count), config))
    sets_BN = _bounded(sets_BN, places, config.max_triplets_per_subject)

    sets_T, candidates_T = sets_BN.reshape(-1), candidates_BN.reshape(-1)
    targets = np.flatnonzero(sets_T)
    codes = candidates_T[targets] * (config.max_triplets_per_target + 1) + sets_T[targets]
    kinds, kind_of = np.unique(codes, return_inverse=True)
    counts, sets = np.divmod(kinds, config.max_triplets_per_target + 1)
    patterns = [_pattern(int(count), config)[:kept] for count, kept in zip(counts, sets, strict=True)]
    sizes = [np.array([len(each) for each in pattern], np.int64) for pattern in patterns]
    choices = [np.concatenate([np.array(each, np.int64) for each in pattern]) for pattern in patterns]
    lengths = np.array([len(choice) for choice in choices], np.int64)[kind_of]  # references of each target
    set_ends, reference_ends = np.cumsum(sets_T[targets]), np.cumsum(lengths)
    sizes_S = np.empty(sets_T.sum(), np.int64)
    references_R = np.empty(lengths.sum(), np.int64)
    photos = similarity_BNN.shape[2]
    similarity_TN, pairs_TN = similarity_BNN.reshape(-1, photos), pairs_BNN.reshape(-1, photos)
    step = max(1, _BLOCK // max(1, photos))
    for first in range(0, len(targets), step):
        block = slice(first, first + step)
        partners = _by_difference(similarity_TN[targets[block]], pairs_TN[targets[block]], needed)
        for kind in np.unique(kind_of[block]):
            mine = np.flatnonzero(kind_of[block] == kind)
            for values, ends, chosen in (
                (sizes_S, set_ends, np.broadcast_to(sizes[kind], (len(mine), len(sizes[kind])))),
                (references_R, reference_ends, partners[mine[:, None], choices[kind]]),
            ):
                starts = ends[block][mine] - chosen.shape[1]
                values[starts[:, None] + np.arange(chosen.shape[1])] = chosen
    return ReferenceSets(sets_T, sizes_S, references_R)


def _bounded(sets_BN: np.ndarray, places: Places, most: int) -> np.ndarray:
    """Return how many sets each target keeps if those of a subject are dealt in turns until it has ``most``."""
    over = np.flatnonzero(sets_BN.sum(axis=1) > most)
    if len(over) == 0:
        return sets_BN
    order_ON = np.argsort(places(over), axis=1, kind="stable")
    wanted_ON = np.take_along_axis(sets_BN[over], order_ON, axis=1)
    kept_ON = np.zeros_like(wanted_ON)
    left_O1 = np.full((len(over), 1), most)
    for turn in range(wanted_ON.max()):
        has_ON = wanted_ON > turn
        dealt_ON = has_ON & (np.cumsum(has_ON, axis=1) <= left_O1)
        kept_ON += dealt_ON
        left_O1 -= dealt_ON.sum(axis=1, keepdims=True)
        if not left_O1.any():
            break
    bounded_ON = np.empty_like(kept_ON)
    np.put_along_axis(bounded_ON, order_ON, kept_ON, axis=1)
    sets_BN = sets_BN.copy()
    sets_BN[over] = bounded_ON
    return sets_BN


def _by_difference(similarity_TN: np.ndarray, pairs_TN: np.ndarray, needed: int) -> np.ndarray:
    """Return the numbers of the first ``needed`` partners of each target, the least similar first: int64 [T, ≤ needed].

    After the last partner of a target come other photos.
    """
    order = np.argsort(np.where(pairs_TN, similarity_TN, np.inf), axis=1, kind="stable")
    return np.asarray(order[:, :needed])


@lru_cache(maxsize=128)
def _pattern(candidates: int, config: PlanConfig) -> list[tuple[int, ...]]:
    """Return the sets of a target that has so many candidates, as numbers of candidates."""
    return list(islice(_sets_of(candidates, config), config.max_triplets_per_target))


def _sets_of(candidates: int, config: PlanConfig) -> Iterator[tuple[int, ...]]:
    """Yield different sets in turns of decreasing size, which use the candidates evenly."""
    if not candidates:
        return
    largest = min(config.max_references, candidates)
    around = cycle(range(candidates))
    used: set[frozenset[int]] = set()
    for size in islice(cycle(range(largest, 0, -1)), 4 * largest * candidates):
        chosen = tuple(islice(around, size))
        if frozenset(chosen) not in used:
            used.add(frozenset(chosen))
            yield chosen
