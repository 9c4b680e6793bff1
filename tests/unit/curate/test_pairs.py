from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.config import PlanConfig
from pipelines.curate.pairs import _sets_of, reference_sets


def plan(pairs: np.ndarray, similarity: np.ndarray | None = None, **settings: int) -> list[list[tuple[int, ...]]]:
    n = len(pairs)
    similar = np.zeros((n, n), np.float32) if similarity is None else similarity.astype(np.float32)
    (sets,) = plan_batch(pairs[None], similar[None], np.arange(n, dtype=np.float64)[None], PlanConfig(**settings))
    return sets


def plan_batch(
    pairs: np.ndarray, similarity: np.ndarray, places: np.ndarray, config: PlanConfig
) -> list[list[list[tuple[int, ...]]]]:
    """The sets of each photo of each subject."""
    chosen = reference_sets(similarity, pairs, places.__getitem__, config)
    references = iter(chosen.references.tolist())
    sets = iter([tuple(islice(references, size)) for size in chosen.sizes])
    targets = iter([list(islice(sets, number)) for number in chosen.sets])
    return [list(islice(targets, pairs.shape[1])) for _ in pairs]


def one_by_one(
    pairs: np.ndarray, similarity: np.ndarray, places: np.ndarray, config: PlanConfig
) -> list[list[tuple[int, ...]]]:
    """The rule for one subject, as directly as it can be written."""
    sets = []
    for similarity_N, paired_N in zip(similarity, pairs, strict=True):
        partners = sorted(np.flatnonzero(paired_N).tolist(), key=lambda i: similarity_N[i])
        groups = islice(_sets_of(len(partners), config), config.max_triplets_per_target)
        sets.append([tuple(partners[i] for i in group) for group in groups])
    kept: list[list[tuple[int, ...]]] = [[] for _ in sets]
    for turn in range(config.max_triplets_per_target):
        for target in sorted(range(len(sets)), key=lambda i: places[i]):
            if turn < len(sets[target]) and sum(map(len, kept)) < config.max_triplets_per_subject:
                kept[target].append(sets[target][turn])
    return kept


@settings(deadline=None)
@given(
    st.integers(1, 8).flatmap(lambda n: st.lists(st.booleans(), min_size=n * n, max_size=n * n)),
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 40),
)  # fmt: skip
def test_reference_sets_respect_the_maxima(flags: list[bool], largest: int, per_target: int, per_subject: int) -> None:
    n = round(len(flags) ** 0.5)
    pairs = np.array(flags).reshape(n, n)
    pairs = (pairs | pairs.T) & ~np.eye(n, dtype=bool)
    sets = plan(pairs, max_references=largest, max_triplets_per_target=per_target, max_triplets_per_subject=per_subject)
    assert sum(map(len, sets)) <= per_subject
    for target, groups in enumerate(sets):
        assert len(groups) <= per_target
        assert len({frozenset(group) for group in groups}) == len(groups)
        for group in groups:
            assert 1 <= len(group) <= largest
            assert len(set(group)) == len(group)
            assert all(pairs[target, other] for other in group)


def test_every_pair_is_used_in_both_directions() -> None:
    pairs = ~np.eye(6, dtype=bool)
    sets = plan(pairs)
    used = {(target, other) for target, groups in enumerate(sets) for group in groups for other in group}
    assert used == set(map(tuple, np.argwhere(pairs).tolist()))
    assert Counter(len(group) for groups in sets for group in groups) == {2: 12, 1: 12}


def test_the_least_similar_references_come_first() -> None:
    similarity = np.array([[1, 0.9, 0.5, 0.7], [0.9, 1, 0.6, 0.6], [0.5, 0.6, 1, 0.6], [0.7, 0.6, 0.6, 1]])
    sets = plan(~np.eye(4, dtype=bool), similarity, max_triplets_per_target=2)
    assert sets[0] == [(2, 3), (1,)]


def test_a_small_maximum_is_shared_by_all_targets() -> None:
    sets = plan(~np.eye(5, dtype=bool), max_triplets_per_subject=7)
    assert [len(groups) for groups in sets] == [2, 2, 1, 1, 1]


def test_two_photos_make_two_triplets() -> None:
    assert plan(~np.eye(2, dtype=bool)) == [[(1,)], [(0,)]]


@settings(deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 4), st.integers(1, 6), st.integers(1, 40),
    st.integers(0, 1000),
)  # fmt: skip
def test_subjects_of_a_batch_get_the_sets_that_each_gets_alone(
    subjects: int, n: int, largest: int, per_target: int, per_subject: int, seed: int
) -> None:
    """Also: only the first candidates of a target are needed."""
    random = np.random.default_rng(seed)
    similarity = random.integers(0, 6, (subjects, n, n)).astype(np.float32)  # many are equal
    pairs = random.random((subjects, n, n)) < random.random()
    pairs = (pairs | pairs.swapaxes(1, 2)) & ~np.eye(n, dtype=bool)
    places = random.random((subjects, n))
    config = PlanConfig(
        max_references=largest, max_triplets_per_target=per_target, max_triplets_per_subject=per_subject
    )
    expected = [one_by_one(*each, config) for each in zip(pairs, similarity, places, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.curate.pairs._BLOCK", 20)
        assert plan_batch(pairs, similarity, places, config) == expected
