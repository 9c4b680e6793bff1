from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.curate.config import PlanConfig
from pipelines.curate.pairs import _by_difference, _sets_of, reference_sets


def plan(pairs: np.ndarray, similarity: np.ndarray | None = None, **settings: int) -> list[list[tuple[int, ...]]]:
    n = len(pairs)
    similar = np.zeros((n, n)) if similarity is None else similarity
    return reference_sets(similar, pairs, list(range(n)), PlanConfig(**settings))


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
@given(st.integers(2, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 100))
def test_only_the_first_candidates_are_needed(n: int, largest: int, per_target: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    similarity, paired = random.random(n), random.random(n) < 0.8
    config = PlanConfig(max_references=largest, max_triplets_per_target=per_target)
    few, everyone = (
        list(islice(_sets_of(_by_difference(similarity, paired, needed), config), per_target))
        for needed in (largest * per_target, n)
    )
    assert few == everyone
