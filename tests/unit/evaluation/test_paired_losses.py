"""Paired losses of a mini model with random weights."""

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


def test_paired_losses_share_noise_and_differ_by_conditions(batch: Batch, measure: Measure) -> None:
    found = measure(batch, batch.with_conditions_of(STRANGERS))
    for prefix in ("", "mllm_only/"):
        for case in IDS:
            gap = found[f"{prefix}loss_shuffled", case] - found[f"{prefix}loss_right", case]
            assert found[f"{prefix}loss_gap", case] == pytest.approx(gap)
            assert abs(gap) > 1e-6
    equal = measure(batch, batch)
    assert all(equal["loss_gap", case] == 0 for case in IDS)


def test_mllm_only_losses_ignore_references(batch: Batch, measure: Measure) -> None:
    import dataclasses

    others = dataclasses.replace(batch, references=batch.references.roll(1, 0))
    before, after = measure(batch, None), measure(others, None)
    for case in IDS:
        assert before["mllm_only/loss_right", case] == pytest.approx(after["mllm_only/loss_right", case])
        assert before["loss_right", case] != pytest.approx(after["loss_right", case], rel=1e-6)


def test_no_loss_gap_without_another_subject(batch: Batch, measure: Measure) -> None:
    assert {metric for metric, _ in measure(batch, None)} == {"loss_right", "mllm_only/loss_right"}


def test_latent_cache_changes_no_value(batch: Batch, measure: Measure) -> None:
    plain, cached = measure(batch, None), measure(batch, None, cache=LatentCache())
    assert plain.keys() == cached.keys()
    assert all(plain[key] == pytest.approx(cached[key], rel=1e-4) for key in plain)


def test_seed_changes_the_noise(batch: Batch, measure: Measure) -> None:
    assert measure(batch, None)["loss_right", "a#0"] != measure(batch, None, seed=1)["loss_right", "a#0"]
