import numpy as np
import pytest

from lookalike.errors import ConfigError
from lookalike.evaluation.estimates import cluster_bootstrap


def _world(rng: np.random.Generator, subjects: int = 12, each: int = 20) -> tuple[np.ndarray, list[str]]:
    """Samples of mean 1 that differ between subjects more than within one."""
    effect = rng.normal(1.0, 1.0, subjects)
    values = np.concatenate([rng.normal(mean, 0.3, each) for mean in effect])
    return values, [f"s{i}" for i in range(subjects) for _ in range(each)]


def test_interval_covers_the_mean_if_samples_of_a_subject_are_alike() -> None:
    covered = clustered_width = naive_width = 0.0
    for trial in range(60):
        values, subjects = _world(np.random.default_rng(trial))
        honest = cluster_bootstrap(values, subjects)
        naive = cluster_bootstrap(values, [str(i) for i in range(len(values))])
        covered += honest.low <= 1.0 <= honest.high
        clustered_width += honest.high - honest.low
        naive_width += naive.high - naive.low
    assert covered >= 0.85 * 60  # nominal 95 %; twelve clusters cost a little of it
    assert clustered_width > 3 * naive_width


def test_estimate_has_mean_and_count_of_the_samples_and_repeats() -> None:
    values, subjects = _world(np.random.default_rng(0))
    first = cluster_bootstrap(values, subjects)
    assert first == cluster_bootstrap(values, subjects)
    assert first.mean == pytest.approx(values.mean())
    assert first.n == len(values)
    assert first.low < first.mean < first.high


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5]])
def test_equal_values_have_an_interval_of_width_zero(values: list[float]) -> None:
    found = cluster_bootstrap(np.array(values), ["a", "b", "c"][: len(values)])
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


def test_one_subject_has_an_interval() -> None:
    found = cluster_bootstrap(np.random.default_rng(0).normal(2, 1, 50), ["only"] * 50)
    assert found.low < 2.2
    assert found.high > 1.8
    assert found.high - found.low < 1


def test_no_values_are_an_error() -> None:
    with pytest.raises(ConfigError, match="cluster"):
        cluster_bootstrap(np.array([]), [])
