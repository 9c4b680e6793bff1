"""What a probe that knows the sample world sees in the images of a personal adapter, beside those of its base."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lookalike.evaluation.estimates import cluster_bootstrap
from lookalike.models.vae import load_vae
from lookalike.training.parts import reconstruct
from pipelines.ingest.config import SampleWorldConfig
from tests.bench.adapters import Lab, Part, before_camera
from tests.bench.probe import CHOICES, FIT, Photo, Probe, read_photos, to_tensor, train_probe

TAUGHT = SampleWorldConfig(seed=61, subjects=2400, size_px=128, defects=False)  # the probe's, as in test_probes.py
PHOTOS, QUICK = 7200, replace(FIT, steps=2400)  # of the first 1,200 subjects; a fifth of the time of the whole


class Truth:
    """Judges parts by a probe that has seen neither their subjects nor any metric of the gate."""

    def __init__(self, lab: Lab, bench_folder: Path) -> None:
        self.lab, self._vae = lab, load_vae(lab.base)
        self._probe = _probe(bench_folder, self._vae)
        self._found: dict[Part, dict[str, Any]] = {}
        self._shown: dict[int, tuple[list[Photo], torch.Tensor]] = {}

    def __call__(self, part: Part) -> dict[str, Any]:
        """Return what :meth:`_judged` finds, which is computed once."""
        if part not in self._found:
            self._found[part] = self._judged(part)
        return self._found[part]

    @torch.no_grad()
    def _judged(self, part: Part) -> dict[str, Any]:
        """Likeness to the subject and share in the right place, of a part's images and of its base's.

        They are good if they are nearer to the subject than the base's, and in the right place but for one in eight.
        A place counts in the camera's colours and in true ones: of a new place no photo says which. ``ceiling`` is the
        likeness of a real photo to the others.
        """
        photos, own = self._photos(part.number)
        found, likeness = {}, {}
        for name, before in (("after", False), ("before", True)):
            prompts, images = zip(*self.lab.images(part, before), strict=True)
            seen = self._probe(to_tensor([before_camera(image, part.number) for image in images]))
            places = torch.tensor([CHOICES["place"].index(_asked(photos, prompt).place) for prompt in prompts])
            shown = [seen_as["place"].argmax(1) for seen_as in (seen, self._probe(to_tensor(images)))]
            right = ((shown[0] == places) | (shown[1] == places)).float().mean().item()
            likeness[name] = (seen["subject"] @ own.T).mean(1).numpy()
            found[name] = {"likeness": round(float(likeness[name].mean()), 4), "place": round(right, 4)}
        nearer = likeness["after"] - likeness["before"]
        follows = found["after"]["place"] >= found["before"]["place"] - 1 / 8
        real = own @ own.T
        interval = cluster_bootstrap(nearer, [str(number) for number in range(len(nearer))])
        return {
            **found,
            "ceiling": round((real.sum() - real.trace()).item() / (len(own) * (len(own) - 1)), 4),
            "nearer by": [round(value, 4) for value in (interval.mean, interval.low, interval.high)],
            "good": bool(nearer.mean() > 0 and follows),
        }

    @torch.no_grad()
    def own_error(self, numbers: Sequence[int]) -> dict[str, float]:
        """How far the probe can be trusted on real photos of these subjects, through the VAE.

        ``subject``: share of photos that are nearer to the other photos of their subject than to those of any other
        of these subjects; ``place``: share whose place is recognised.
        """
        shown = [self._photos(number) for number in numbers]
        photos = [photo for each, _ in shown for photo in each]
        owner = np.array([index for index, (each, _) in enumerate(shown) for _ in each])
        cosine = (rows := torch.cat([own for _, own in shown])).matmul(rows.T).numpy()
        np.fill_diagonal(cosine, np.nan)
        nearness = np.stack([np.nanmean(cosine[:, owner == index], axis=1) for index in range(len(shown))], 1)
        images = reconstruct(self._vae, to_tensor([photo.image for photo in photos]))
        places = self._probe(images)["place"].argmax(1).tolist()
        return {
            "subject": round(float((nearness.argmax(1) == owner).mean()), 3),
            "place": round(
                float(np.mean([CHOICES["place"][i] == p.place for i, p in zip(places, photos, strict=True)])), 3
            ),
        }

    def _photos(self, number: int) -> tuple[list[Photo], torch.Tensor]:
        """The photos of a subject, and their embeddings as the VAE shows them, ``[photos, EMBEDDING]``."""
        if number not in self._shown:
            photos = read_photos(self.lab.folder / "truth" / f"{number:02d}", self.lab.world(number))
            images = reconstruct(self._vae, to_tensor([photo.image for photo in photos]))
            self._shown[number] = photos, self._probe(images)["subject"]
        return self._shown[number]


def _probe(bench_folder: Path, vae: Any) -> Probe:
    """The trained probe; its weights are kept, since its photos alone take minutes to prepare."""
    weights = bench_folder / "probe-1200.safetensors"
    if weights.exists():
        state = load_file(weights)
        probe = Probe(len(state["subjects"]))
        probe.load_state_dict(state)
        return probe.eval()
    taught = read_photos(bench_folder / f"world-{TAUGHT.seed}-{TAUGHT.subjects}", TAUGHT)[:PHOTOS]
    probe = train_probe(taught, vae, bench_folder / "probe-1200", QUICK)
    save_file(probe.state_dict(), weights.with_suffix(".part"))
    weights.with_suffix(".part").rename(weights)
    return probe


def _asked(photos: Sequence[Photo], prompt: str) -> Photo:
    return next(photo for photo in photos if photo.caption == prompt)
