"""Latents in shards are equal to those that training would compute."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lookalike.bundles.build import materialise
from lookalike.bundles.load import load_model
from lookalike.bundles.manifest import latent_identity, read_manifest
from lookalike.data.triplets import read_triplets
from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.objective import denoising_loss
from lookalike.models.batch import to_batch
from lookalike.models.presets import load_preset
from lookalike.models.vae import load_vae
from lookalike.storage import open_store
from pipelines.curate.config import ShardsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.materialise import UnitWriter
from pipelines.curate.work import StageWork
from pipelines.train.samples import TripletSource, prepare
from tests.drawn import world, write_raw
from tests.published import materialise as publish


def test_training_reads_latents_instead_of_running_the_vae(
    planned: Callable[..., StageWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = materialise(load_preset("mini"), tmp_path / "bundle")
    work = planned(
        write_raw(tmp_path / "raw", world(3, 4)),
        filters=FiltersConfig(no_pair=NoPair(min_similarity=-1.0)),
        shards=ShardsConfig(latents=str(bundle)),
    )
    assert work.inputs.latents == latent_identity(read_manifest(bundle))
    version = publish(work, write=lambda done, unit: UnitWriter(done)(unit)).version.uri
    again = publish(work, "v0002", parent=1)  # without the VAE: images and their latents are used again
    assert read_triplets(again.version) == read_triplets(open_store(version))
    assert all(triplet.target_latents_length for triplet in read_triplets(open_store(version)))
    rows = np.array([0, 5, 3])
    read = prepare(TripletSource(version, "train", str(bundle), latents=True), rows)
    computed = prepare(TripletSource(version, "train", str(bundle)), rows)
    model, vae, flow = load_model(bundle), load_vae(bundle), FlowConfig.from_bundle(bundle)

    def loss(columns: dict[str, np.ndarray]) -> torch.Tensor:
        with torch.no_grad():
            return denoising_loss(
                model, vae, to_batch(columns), sample_ids=columns["sample_id"].tolist(), seed=0, flow=flow
            )

    expected = loss(computed)
    monkeypatch.setattr("lookalike.diffusion.objective.encode", lambda *_: pytest.fail("the VAE has run"))
    assert torch.allclose(loss(read), expected, rtol=2e-3)
