"""The epoch plan is a function of the seed alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.training import epoch_plan as plans
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


def test_order_is_the_same_in_a_new_process() -> None:
    plan, orders = EpochPlan(num_samples=30, batch_size=8, seed=3), []
    for _ in range(2):
        plans._order.cache_clear()
        orders.append(plan.slots(5).tolist())
    assert orders[0] == orders[1]


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {tuple(EpochPlan(64, 64, seed).slots(epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
