"""The epoch plan is a function of the seed alone."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.training.epoch_plan import PADDING, EpochPlan


@given(samples=st.integers(1, 200), batch=st.sampled_from([4, 8, 12]), seed=st.integers(0, 9), epoch=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_an_epoch_visits_each_sample_once(samples: int, batch: int, seed: int, epoch: int) -> None:
    plan = EpochPlan(samples, batch, seed)
    first = epoch * plan.steps_per_epoch
    seen = np.concatenate([plan.slots(step) for step in range(first, first + plan.steps_per_epoch)])
    assert sorted(seen[seen != PADDING]) == list(range(samples))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_partition_each_step(world_size: int) -> None:
    plan = EpochPlan(num_samples=30, batch_size=8, seed=3)
    for step in range(2 * plan.steps_per_epoch):
        shares = [plan.rank_slots(step, rank, world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(shares), plan.slots(step))


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(3, 1), (3, 2), (5, 4), (1, 8)])
def test_any_number_of_ranks_partitions_each_step_with_padding_at_the_end(
    world_size: int, micro_batch_size: int
) -> None:
    plan = EpochPlan(num_samples=30, batch_size=8, seed=3)
    for step in range(plan.steps_per_epoch):
        shares = [plan.rank_slots(step, rank, world_size, micro_batch_size) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1
        assert len(shares[0]) % micro_batch_size == 0
        taken = np.concatenate(shares)
        np.testing.assert_array_equal(taken[:8], plan.slots(step))
        assert (taken[8:] == PADDING).all()


@pytest.mark.parametrize(
    ("samples", "seed", "epoch", "first"),
    [
        (30, 3, 0, [11, 24, 2, 15]),
        (30, 3, 1, [19, 27, 9, 24]),
        (30, 4, 0, [22, 0, 28, 23]),
        (10**9, 0, 0, [263737703, 509729113, 496970738, 564771341]),
        (10**9, 0, 7, [830761884, 290617450, 743106688, 764758808]),
    ],
)
def test_the_order_is_pinned(samples: int, seed: int, epoch: int, first: list[int]) -> None:
    """A run that was begun with one version of this software continues with the next."""
    plan = EpochPlan(samples, batch_size=4, seed=seed)
    assert plan.slots(epoch * plan.steps_per_epoch).tolist() == first


def test_a_step_of_a_billion_samples_takes_little_memory() -> None:
    plan = EpochPlan(10**9, batch_size=256, seed=0)
    tracemalloc.start()
    plan.slots(10**6)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {tuple(EpochPlan(64, 64, seed).slots(epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
