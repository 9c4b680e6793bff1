"""Positions between floor and ceiling: derived from the rows, with an interval that resamples subjects."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import InputError
from lookalike.evaluation.estimates import Clustered, Estimate
from lookalike.evaluation.measurements import (
    SCHEMA,
    Measurement,
    above_ceiling,
    estimates,
    position_problem,
    summarise,
    table_of,
    to_parquet,
    with_prefix,
)
from lookalike.evaluation.paired import paired_positions
from lookalike.evaluation.positions import position


def _rows(metric: str, means: dict[str, float], each: int = 4, noise: float = 0.02, seed: int = 0) -> list[Measurement]:
    rng = np.random.default_rng(seed)
    return [
        Measurement(f"{metric}-{subject}-{i}", subject, metric, mean + noise * float(rng.normal()))
        for subject, mean in means.items()
        for i in range(each)
    ]


def _world(share: float, subjects: int = 10, **photos: int) -> list[Measurement]:
    """Images at ``share`` of the way from floor to ceiling, of subjects of which some are more alike than others."""
    ceiling = {f"s{i}": 0.6 + 0.03 * i for i in range(subjects)}
    floor = {name: value - 0.3 - 0.01 * int(name[1:]) for name, value in ceiling.items()}
    images = {name: floor[name] + share * (ceiling[name] - floor[name]) for name in ceiling}
    return [
        *_rows("identity", images, seed=1),
        *_rows("ceiling/identity", ceiling, photos.get("each", 5), seed=2),
        *_rows("floor/identity", floor, photos.get("each", 5), seed=3),
    ]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, 1.5])
def test_position_is_the_share_of_the_way_from_floor_to_ceiling(share: float) -> None:
    found = summarise(_world(share))["position/identity"]
    assert found.mean == pytest.approx(share, abs=0.06)
    assert found.low <= found.mean <= found.high
    assert found.high - found.low < 0.25
    assert found.n == 40


def test_interval_covers_the_true_position_of_subjects_that_differ() -> None:
    covered = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        names = [f"s{i:02}" for i in range(16)]
        parts = []
        for mean, each in ((0.5, 4), (0.8, 3), (0.2, 3)):  # the true position is .5
            own = rng.normal(mean, 0.08, len(names))
            values = (own[:, None] + rng.normal(0, 0.05, (len(names), each))).ravel()
            parts.append(Clustered.of(values, [name for name in names for _ in range(each)]))
        found = position(*parts)
        covered += found.low <= 0.5 <= found.high
    assert covered >= 0.85 * 60


def test_subjects_with_more_photos_do_not_move_a_perfect_position() -> None:
    """Images exactly like the real photos: position 1, though the easy subject has ten photos and the hard one two."""
    photos = {"easy": (10, 0.9, 0.4), "hard": (2, 0.5, 0.3), "third": (3, 0.7, 0.3)}
    rows = []
    for subject, (count, ceiling, floor) in photos.items():
        rows += [Measurement(f"{subject}-{i}", subject, "identity", ceiling) for i in range(4)]
        rows += [Measurement(f"{subject}-c{i}", subject, "ceiling/identity", ceiling) for i in range(count)]
        rows += [Measurement(f"{subject}-f{i}", subject, "floor/identity", floor) for i in range(count)]
    found = summarise(rows)
    assert found["position/identity"].mean == pytest.approx(1)
    assert found["position/identity"].high == pytest.approx(1)
    assert found["ceiling/identity"].mean > found["identity"].mean + 0.05  # the plain means are of other mixes


def test_each_bundle_and_schedule_has_its_position_and_the_hard_floor_its_own() -> None:
    rows = _world(0.5)
    images = [row for row in rows if row.metric == "identity"]
    rows += [*with_prefix(images, "before/"), *with_prefix(images, "before/both/"), *with_prefix(images, "both/")]
    hard = [row for row in rows if row.metric == "floor/identity" and row.subject < "s4"]
    rows += [replace(row, metric="hard_floor/identity", value=row.value + 0.05) for row in hard]
    found = summarise(rows)
    prefixes = ("", "before/", "before/both/", "both/")
    names = {f"{prefix}{kind}/identity" for prefix in prefixes for kind in ("position", "hard_position")}
    assert {name for name in found if "position" in name} == names
    for prefix in prefixes:
        assert found[f"{prefix}position/identity"] == found["position/identity"]
    assert found["hard_position/identity"].n == 16  # images of the four subjects that have one of the same class
    assert found["hard_position/identity"].mean < found["position/identity"].mean


def test_metric_without_real_photos_has_no_position() -> None:
    found = summarise([*_world(0.5), *_rows("clip_t", {"a": 0.3, "b": 0.2})])
    assert not any("position" in name and name.endswith("clip_t") for name in found)
    without_floor = [row for row in _world(0.5) if not row.metric.startswith("floor")]
    found = summarise(without_floor)
    assert "position/identity" not in found
    assert position_problem(found, "position/identity") == "floor/identity was not measured"


def test_position_without_a_gap_between_floor_and_ceiling_is_nan_with_its_reason() -> None:
    means = {f"s{i}": 0.5 for i in range(8)}
    rows = [
        *_rows("identity", means, noise=0.1),
        *_rows("ceiling/identity", means, noise=0.1, seed=1),
        *_rows("floor/identity", means, noise=0.1, seed=2),
    ]
    found = summarise(rows)
    estimate = found["position/identity"]
    assert math.isnan(estimate.mean)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert estimate.n == 32
    reason = position_problem(found, "position/identity")
    assert reason is not None
    assert "not clearly more alike" in reason
    assert f"{found['ceiling/identity'].mean:.3g}" in reason
    assert position_problem(summarise(_world(0.5)), "position/identity") is None


def test_floor_above_the_ceiling_is_nan() -> None:
    swap = {"ceiling/identity": "floor/identity", "floor/identity": "ceiling/identity", "identity": "identity"}
    found = summarise([replace(row, metric=swap[row.metric]) for row in _world(0.5)])
    assert math.isnan(found["position/identity"].mean)


def test_value_that_is_not_finite_makes_the_position_nan() -> None:
    rows = _world(0.5)
    for metric in ("identity", "ceiling/identity", "floor/identity"):
        index = next(i for i, row in enumerate(rows) if row.metric == metric)
        broken = [*rows[:index], replace(rows[index], value=math.inf), *rows[index + 1 :]]
        found = summarise(broken)
        assert math.isnan(found["position/identity"].mean)
        assert position_problem(found, "position/identity") == f"a value of {metric} is not finite"


def test_subjects_without_a_ceiling_are_left_out_and_n_says_so() -> None:
    rows = [row for row in _world(0.5) if row.metric != "ceiling/identity" or row.subject in ("s0", "s1", "s2")]
    assert summarise(rows)["position/identity"].n == 12
    rows = [replace(row, subject="t") if row.metric.startswith("ceiling") else row for row in rows]
    found = summarise(rows)
    assert found["position/identity"].n == 0
    assert (position_problem(found, "position/identity") or "").startswith("no subject has all of")


@pytest.mark.parametrize("each", [1, 5])
def test_one_subject_has_a_position_with_an_interval(each: int) -> None:
    """A personal model: its images against one or five held-out photos of its subject."""
    found = summarise(_world(0.5, subjects=1, each=each))["position/identity"]
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(0.5, abs=0.12)
    assert found.n == 4


def test_images_above_the_ceiling_are_named() -> None:
    pasted = summarise([*_world(1.3), *with_prefix(_world(0.5)[:40], "before/")])
    assert above_ceiling(pasted) == ["position/identity"]
    assert above_ceiling(summarise(_world(1.0))) == []
    assert above_ceiling({"position/identity": Estimate(1.1, 0.9, 1.3, 4)}) == []  # its interval reaches below
    assert above_ceiling({"loss_gap": Estimate(2, 1.5, 3, 4)}) == []


def test_positions_are_those_of_the_file_and_do_not_depend_on_its_order() -> None:
    rows = _world(0.7)
    mixed = random.Random(0).sample(rows, len(rows))
    data = to_parquet(pa.Table.from_pylist([{"unit": 0, **vars(row)} for row in mixed], SCHEMA), {})
    assert estimates(data, 0, "m") == summarise(rows)


def test_measured_position_is_refused() -> None:
    """It would take the place of the one that follows from the measurements."""
    forged = [{"unit": 0, "case": "c", "subject": "s", "metric": "position/identity", "value": 1.0}]
    with pytest.raises(InputError, match="position/identity is not measured but computed"):
        estimates(to_parquet(pa.Table.from_pylist(forged, SCHEMA), {}), 0, "m")


def _differ(ours: list[Measurement], theirs: list[Measurement]) -> tuple[Estimate, int]:
    found = paired_positions(table_of(ours), table_of(theirs), "position/identity")
    assert found is not None
    return found


def test_difference_of_positions_is_paired_by_subject() -> None:
    """What makes a subject easy for both models does not widen the difference."""
    theirs = _world(0.5)
    ours = [
        replace(row, value=row.value + 0.02 * (1 + int(row.case[-1]))) if row.metric == "identity" else row
        for row in theirs
    ]
    one, other = summarise(ours)["position/identity"], summarise(theirs)["position/identity"]
    found, subjects = _differ(ours, theirs)
    assert found.mean == pytest.approx(one.mean - other.mean, abs=1e-12)
    assert 0 < found.low < found.mean < found.high
    assert found.high - found.low < 0.5 * (one.high - one.low)
    assert (found.n, subjects) == (40, 10)
    back, _ = _differ(theirs, ours)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=2e-3)


def test_difference_of_positions_covers_the_true_one() -> None:
    """Sixteen subjects that differ; the second model is .1 of the way nearer to the ceiling."""
    covered = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        floor, span, own = rng.normal(0.3, 0.1, 16), rng.uniform(0.2, 0.4, 16), rng.normal(0.4, 0.15, 16)
        names = [f"s{i:02}" for i in range(16)]

        def rows(metric: str, means: np.ndarray, rng: np.random.Generator = rng, names: list[str] = names) -> Any:
            noise = rng.normal(0, 0.02, (16, 3))
            return [
                Measurement(f"{name}-{i}", name, metric, float(means[s] + noise[s, i]))
                for s, name in enumerate(names)
                for i in range(3)
            ]

        real = [*rows("ceiling/identity", floor + span), *rows("floor/identity", floor)]
        models = [[*rows("identity", floor + (own + shift) * span), *real] for shift in (0.1, 0.0)]
        found, _ = _differ(*models)
        covered += found.low <= 0.1 <= found.high
    assert covered >= 35


@pytest.mark.parametrize("each", [1, 5])
def test_one_subject_has_a_difference_of_positions(each: int) -> None:
    theirs = _world(0.5, subjects=1, each=each)
    ours = [replace(row, value=row.value + 0.1) if row.metric == "identity" else row for row in theirs]
    found, subjects = _differ(ours, theirs)
    assert subjects == 1
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(
        summarise(ours)["position/identity"].mean - summarise(theirs)["position/identity"].mean
    )


def test_difference_of_a_position_that_is_undefined_is_undefined() -> None:
    swap = {"identity": "identity", "ceiling/identity": "floor/identity", "floor/identity": "ceiling/identity"}
    upside_down = [replace(row, metric=swap[row.metric]) for row in _world(0.5)]
    assert math.isnan(_differ(upside_down, upside_down)[0].mean)
    broken = [*_world(0.5)[:-1], replace(_world(0.5)[-1], value=math.inf)]
    assert math.isnan(_differ(broken, _world(0.5))[0].mean)
    without = [row for row in _world(0.5) if row.metric != "floor/identity"]
    assert paired_positions(table_of(without), table_of(_world(0.5)), "position/identity") is None


def test_real_photos_of_each_evaluation_are_its_own() -> None:
    """Two models of different image sizes have different ceilings: each position is on its own scale."""
    theirs = _world(0.5)
    ours = [replace(row, value=2 * row.value) for row in theirs]
    found, _ = _differ(ours, theirs)
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert found.high - found.low < 1e-9
