"""Evaluations during training: held-out losses by noise level, and images of held-out samples."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.bundles.load import load_model, load_preprocessor
from lookalike.diffusion.flow import FlowConfig, draw
from lookalike.diffusion.objective import denoising_loss
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.models.batch import to_batch
from lookalike.models.vae import load_vae
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop_config import DropoutConfig, ImagesConfig
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.objective import DenoisingObjective, HeldOutLoss
from lookalike.training.previews import HeldOutImages
from lookalike.training.ranks import Rank

PROMPTS = ["a red mug", "a blue box on the wet sand of a beach", "a dog"]
IDS = ["a", "b", "c"]
BOTH = PhaseConfig(name="both", steps=10, conditions="mllm+references")
MLLM = PhaseConfig(name="mllm", steps=10, conditions="mllm")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def columns(bundle_dir: Path, photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    found = load_preprocessor(bundle_dir)(PROMPTS, [[photo] for photo in photos[:3]], photos[3:])
    return {
        **found,
        "sample_id": np.array(IDS),
        "subject": np.array(IDS),
        "weight": np.ones(3, dtype=np.float32),
    }


@pytest.fixture(scope="module")
def objective(bundle_dir: Path, perturb: Callable[..., Any]) -> DenoisingObjective:
    model = perturb(load_model(bundle_dir)).eval()
    flow = FlowConfig.from_bundle(bundle_dir)
    return DenoisingObjective(model, load_vae(bundle_dir), flow, DropoutConfig(), 0, torch.device("cpu"))


@torch.no_grad()
def test_held_out_losses_by_noise_level_are_the_means_of_their_samples(
    objective: DenoisingObjective, columns: dict[str, np.ndarray]
) -> None:
    parts = [{name: values[:2] for name, values in columns.items()}, {n: v[2:] for n, v in columns.items()}]
    found = HeldOutLoss(objective, parts, Rank().sum)(BOTH)
    options = {"sample_ids": IDS, "seed": (0,), "flow": objective.flow}
    losses = denoising_loss(objective.model, objective.vae, to_batch(columns), **options).numpy()
    assert found["loss_right"] == pytest.approx(losses.mean(), rel=1e-4)
    levels = draw(IDS, (0,), (64, 16), objective.flow).sigma.numpy()
    expected = {
        f"loss_sigma_{low:.2f}-{low + 0.25:.2f}": losses[chosen].mean()
        for low in (0, 0.25, 0.5, 0.75)
        if (chosen := (low <= levels) & (levels < low + 0.25)).any()
    }
    assert {name for name in found if "sigma" in name} == set(expected)
    assert len(expected) > 1
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("phase", [BOTH, MLLM])
def test_inputs_computed_ahead_give_the_same_losses(
    objective: DenoisingObjective, columns: dict[str, np.ndarray], phase: PhaseConfig
) -> None:
    plain, prepared = MicroBatch(columns), objective.compute_inputs(columns, phase, 3)
    assert prepared.columns["sample_id"].tolist() == IDS
    assert prepared.drawn is not None
    assert torch.equal(objective(prepared, phase, 3), objective(plain, phase, 3))
    assert not torch.equal(objective(prepared, phase, 3), objective(plain, phase, 4))


@pytest.mark.parametrize(("phase", "schedule"), [(BOTH, "paper"), (BOTH, "0.9/0.3"), (MLLM, "mllm_only")])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_previews_equal_the_pipelines_images(
    bundle_dir: Path,
    objective: DenoisingObjective,
    columns: dict[str, np.ndarray],
    photos: list[np.ndarray],
    phase: PhaseConfig,
    schedule: str,
    guidance: float,
) -> None:
    config = ImagesConfig(count=3, steps=6, guidance=guidance)
    pipe = SubjectPipeline.from_pretrained(bundle_dir)
    own = schedule if phase is BOTH else "paper"
    found = HeldOutImages(objective, columns, config, own, copy.deepcopy(pipe.scheduler))(phase)
    assert objective.model.training
    objective.model.eval()
    pipe.set_progress_bar_config(disable=True)
    for part in ("aggregator", "transformer", "mllm"):
        getattr(pipe, part).load_state_dict(getattr(objective.model, part).state_dict())
    expected = pipe(
        PROMPTS,
        [[Image.fromarray(photo)] for photo in photos[:3]],
        num_inference_steps=config.steps,
        guidance_scale=guidance,
        stages=schedule,
        latents=draw(IDS, ("images", 0), (64, 16), objective.flow).noise,
    ).images
    assert found.shape == (3, 64, 64, 3)
    assert np.abs(found.astype(int) - np.stack(expected).astype(int)).max() <= 1
    assert len(np.unique(found)) > 20
