"""Data sets of the sample world, evaluations of their subjects, and the truth about the images of these."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lookalike.data.images import decode
from lookalike.data.shards import iter_samples
from lookalike.data.triplets import Split, Triplet, read_triplets
from lookalike.models.vae import load_vae
from lookalike.storage import Store, latest_version, list_versions, open_store, version_store
from lookalike.training.parts import reconstruct
from pipelines.ingest.config import IngestConfig, SampleWorldConfig
from tests.bench.judge import Case, Judge, Scores, twins_of
from tests.bench.probe import FIT, Photo, Probe, read_photos, to_tensor, train_probe

TAUGHT = SampleWorldConfig(seed=61, subjects=2400, size_px=128, defects=False)  # the probe's
PROBE_FIT = replace(FIT, steps=3000)  # half of those of test_probes.py: a quarter of an hour on one core
REFERENCES = 1  # of a sample, as in DreamBench


def make_dataset(folder: Path, world: SampleWorldConfig, held_out: float) -> str:
    """Render a world below ``folder`` and curate it; a share of its subjects is the split ``validation``.

    A data set that exists is reused, and then Ray is not needed. Nothing is filtered by an embedder.
    """
    raw, dataset = folder / "raw", folder / "dataset"
    if not list_versions(open_store(str(dataset))):
        from pipelines.curate import CurateConfig, curate
        from pipelines.curate.config import PlanConfig, ShardsConfig
        from pipelines.curate.filters import FiltersConfig
        from pipelines.curate.filters.no_pair import NoPair
        from pipelines.entry import ray_session
        from pipelines.ingest import ingest

        filters = FiltersConfig(skip=["near_duplicate", "off_subject"], no_pair=NoPair(min_similarity=0))
        plan = PlanConfig(
            max_references=REFERENCES,
            max_triplets_per_target=2,
            validation_fraction=held_out,
            min_validation_subjects=0,
        )
        shards = ShardsConfig(image_size=64, jpeg_quality=90)
        with ray_session():
            ingest(IngestConfig(source="sample", raw=str(raw), sample=world))
            curate(
                CurateConfig(
                    raw=str(raw), dataset=str(dataset), embedder="none", filters=filters, plan=plan, shards=shards
                )
            )
    return str(dataset)


def triplets_of(dataset: str, split: Split) -> dict[str, Triplet]:
    """The triplets of the newest snapshot by their ids."""
    store = open_store(dataset)
    newest = version_store(store, latest_version(store))
    return {triplet.triplet_id: triplet for triplet in read_triplets(newest, split)}


def photos_of(folder: Path, world: SampleWorldConfig) -> dict[str, Photo]:
    """The photos of the world of :func:`make_dataset` by the SHA-256 of their files, in the order of their keys."""
    hashes: dict[str, str] = {}
    for path in sorted((folder / "raw").glob("shard-*.tar")):
        with path.open("rb") as file:
            hashes |= {s.key: hashlib.sha256(members["jpg"]).hexdigest() for s, members in iter_samples(file)}
    photos = read_photos(folder / "raw", world)
    return {hashes[key]: photo for key, photo in zip(sorted(hashes), photos, strict=True)}


def trained_probe(bench_folder: Path, vae: nn.Module) -> Probe:
    """The probe, which is trained once; its weights are a file in ``bench_folder``."""
    file = bench_folder / f"probe-{PROBE_FIT.steps}.safetensors"
    if not file.exists():
        taught = read_photos(bench_folder / f"world-{TAUGHT.seed}-{TAUGHT.subjects}", TAUGHT)
        trained = train_probe(taught, vae, bench_folder / f"probe-{PROBE_FIT.steps}", PROBE_FIT)
        part = file.with_suffix(".part")
        save_file(trained.state_dict(), part)
        part.rename(file)
    weights = load_file(file)
    probe = Probe(len(weights["subjects"]))
    probe.load_state_dict(weights)
    return probe.eval()


class Truth:
    """Judges images of evaluations of one data set by the probe."""

    def __init__(self, folder: Path, world: SampleWorldConfig, probe: Probe, bundle: Path, split: Split) -> None:
        self._photos = photos_of(folder, world)
        self.triplets = triplets_of(str(folder / "dataset"), split)
        photos = list(self._photos.values())
        self._shown = reconstruct(load_vae(bundle), to_tensor([photo.image for photo in photos]))
        self.judge = Judge(probe, self._shown, photos, twins_of(world))

    def __call__(self, images: Store, cases: Sequence[str]) -> Scores:
        """Scores of the images ``CASE.png`` in ``images``, in the order of ``cases``, which are ids of triplets."""
        return self.judged([decode(images.read(f"{case}.png")) for case in cases], cases)

    def judged(self, images: Any, cases: Sequence[str]) -> Scores:
        """Scores of ``images``, uint8 ``[H, W, 3]`` each."""
        return self.judge(to_tensor(images), [self._case(case) for case in cases])

    def of_real_photos(self, cases: Sequence[str]) -> Scores:
        """Scores of the photos that the prompts describe, through the VAE."""
        asked, order = [self._case(case) for case in cases], list(self._photos.values())
        index = {id(photo): number for number, photo in enumerate(order)}
        return self.judge(self._shown[[index[id(case.target)] for case in asked]], asked)

    def subjects(self, cases: Sequence[str]) -> list[str]:
        """The subject of each case."""
        return [self.triplets[case].subject for case in cases]

    def _case(self, case: str) -> Case:
        triplet = self.triplets[case]
        return Case(self._photos[triplet.reference_images[0]], self._photos[triplet.target_image], 0)


def cases_below(images: Store) -> list[str]:
    """The cases of the images in a folder, sorted."""
    return sorted(Path(info.key).stem for info in images.list("") if info.key.endswith(".png"))


def rounded(estimate: Any) -> list[float]:
    """Mean and interval."""
    return [round(float(value), 4) for value in (estimate.mean, estimate.low, estimate.high)]


def finite(values: np.ndarray, clusters: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The values that are numbers, and their clusters."""
    kept = ~np.isnan(values)
    return values[kept], [name for name, keep in zip(clusters, kept, strict=True) if keep]


def one_thread() -> None:
    """Compute on one core: on cores shared with other work two are slower."""
    torch.set_num_threads(1)
