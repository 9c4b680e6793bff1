"""The permutation in constant memory: a bijection that looks random, and is the same everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.permutation import Permutation


@settings(deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**62))
def test_it_is_a_bijection(size: int, seed: int) -> None:
    images = Permutation(size, (seed, 0))(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_parts_are_those_of_the_whole() -> None:
    permutation = Permutation(100_003, (7, 3))
    whole = permutation(np.arange(100_003))
    assert np.array_equal(permutation(np.arange(5_000, 6_000)), whole[5_000:6_000])


def test_the_order_is_pinned() -> None:
    """An epoch that was begun with one version of this software continues with the next."""
    assert Permutation(1_000_000_000, (0, 0))(np.arange(5)).tolist() == [
        263737703,
        509729113,
        496970738,
        564771341,
        316188794,
    ]


def test_neighbours_and_lags_are_uncorrelated() -> None:
    size = 200_000
    images = Permutation(size, (1, 2))(np.arange(size)).astype(float)
    for lag in (1, 2, 3, 64, 4096):
        assert abs(np.corrcoef(images[:-lag], images[lag:])[0, 1]) < 4 / np.sqrt(size)


def test_each_position_is_about_uniform_over_seeds() -> None:
    firsts = np.array([Permutation(16, (seed, 0))(np.arange(1))[0] for seed in range(4_000)])
    counts = np.bincount(firsts, minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 45  # chi-squared with 15 degrees of freedom: p about 1e-4


@pytest.mark.parametrize("size", [1, 2, 3, 2**20, 2**20 + 1, 10**12])
def test_every_size_stays_inside(size: int) -> None:
    images = Permutation(size, (5,))(np.arange(min(size, 1000)))
    assert images.min() >= 0
    assert images.max() < size
    assert len(set(images.tolist())) == min(size, 1000)
