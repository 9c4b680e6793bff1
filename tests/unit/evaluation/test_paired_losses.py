"""Losses in pairs, on a mini model whose weights are random instead of zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.bundles.load import load_model, load_preprocessor
from lookalike.diffusion.flow import FlowConfig
from lookalike.evaluation.measure import paired_losses
from lookalike.evaluation.measurements import Measurement
from lookalike.models.batch import Batch, to_batch
from lookalike.models.vae import LatentCache, load_vae

IDS = ["a#0", "b#0", "c#0"]
STRANGERS = [1, 2, 0]
Measure = Callable[..., dict[tuple[str, str], float]]


@pytest.fixture(scope="module")
def batch(bundle_dir: Path) -> Batch:
    noise = np.random.default_rng(0)
    pictures = noise.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    prompts = ["a red mug on grass", "a blue duck on sand", "a green hat on snow"]
    return to_batch(load_preprocessor(bundle_dir)(prompts, [[p] for p in pictures[:3]], list(pictures[3:])))


@pytest.fixture(scope="module")
def measure(bundle_dir: Path, perturb: Callable[..., Any]) -> Measure:
    model = perturb(load_model(bundle_dir))
    vae, flow = load_vae(bundle_dir), FlowConfig.from_bundle(bundle_dir)

    def run(right: Batch, shuffled: Batch | None, **changes: Any) -> dict[tuple[str, str], float]:
        settings = {"sample_ids": IDS, "subjects": ["a", "b", "c"], "seed": 0} | changes
        rows: list[Measurement] = paired_losses(model, vae, flow, right, shuffled, **settings)
        return {(row.metric, row.case): row.value for row in rows}

    return run


def test_both_arms_have_the_same_noise_and_differ_by_the_conditions(batch: Batch, measure: Measure) -> None:
    found = measure(batch, batch.with_conditions_of(STRANGERS))
    for prefix in ("", "mllm_only/"):
        for case in IDS:
            gap = found[f"{prefix}loss_shuffled", case] - found[f"{prefix}loss_right", case]
            assert found[f"{prefix}loss_gap", case] == pytest.approx(gap)
            assert abs(gap) > 1e-6
    equal = measure(batch, batch)
    assert all(equal["loss_gap", case] == 0 for case in IDS)


def test_the_mode_without_references_does_not_see_them(batch: Batch, measure: Measure) -> None:
    import dataclasses

    others = dataclasses.replace(batch, references=batch.references.roll(1, 0))
    before, after = measure(batch, None), measure(others, None)
    for case in IDS:
        assert before["mllm_only/loss_right", case] == pytest.approx(after["mllm_only/loss_right", case])
        assert before["loss_right", case] != pytest.approx(after["loss_right", case], rel=1e-6)


def test_without_strangers_there_is_no_gap(batch: Batch, measure: Measure) -> None:
    assert {metric for metric, _ in measure(batch, None)} == {"loss_right", "mllm_only/loss_right"}


def test_a_cache_changes_nothing_but_the_work(batch: Batch, measure: Measure) -> None:
    plain, cached = measure(batch, None), measure(batch, None, cache=LatentCache())
    assert plain.keys() == cached.keys()
    assert all(plain[key] == pytest.approx(cached[key], rel=1e-4) for key in plain)


def test_another_seed_is_another_noise(batch: Batch, measure: Measure) -> None:
    assert measure(batch, None)["loss_right", "a#0"] != measure(batch, None, seed=1)["loss_right", "a#0"]
