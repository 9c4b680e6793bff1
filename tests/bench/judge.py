"""What the probe sees in generated images of the sample world, and which subject it takes them for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.ingest.config import SampleWorldConfig
from pipelines.ingest.sample import vocabulary, world
from tests.bench.probe import CHOICES, COLOURS, Photo, Probe

Scores = dict[str, np.ndarray]
"""By the name of a score its value of each image, float64; NaN where it does not apply."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One image to generate."""

    reference: Photo
    target: Photo
    """A real photo that shows what the prompt asks for."""
    seed: int

    def prompt(self, bare: bool) -> str:
        """The target's caption; a bare one names neither colours nor pattern."""
        return (
            vocabulary.caption(self.target.shape, self.target.place, self.target.view) if bare else self.target.caption
        )


def twins_of(config: SampleWorldConfig) -> dict[str, str]:
    """The subjects of a world that have a twin, another shape in the same colours and pattern, with its name."""
    pairs = [(thing.name, thing.twin_of) for thing in world.subjects(config) if thing.twin_of]
    return {a: b for pair in pairs for a, b in (pair, pair[::-1])}


class Judge:
    """Scores what an image shows, and which of the subjects of ``photos``, whose pixels are ``shown``."""

    def __init__(self, probe: Probe, shown: torch.Tensor, photos: Sequence[Photo], twins: Mapping[str, str]) -> None:
        self._probe, self._photos, self._twins = probe, photos, twins
        self._names = sorted({photo.subject for photo in photos})
        self._owner = np.array([self._names.index(photo.subject) for photo in photos])
        self._found = self._see(shown)

    def __call__(self, images: torch.Tensor, cases: Sequence[Case]) -> Scores:
        """Scores of each image, uint8 ``[B, 3, H, W]``, of the case of the same index."""
        found = self._see(images)
        likeness = np.stack([self._likeness(row, case) for row, case in zip(found["subject"], cases, strict=True)])
        own = np.array([self._names.index(case.target.subject) for case in cases])
        rows = np.arange(len(cases))
        references = [place_of(self._photos, case.reference) for case in cases]
        scores: dict[str, Any] = {
            "identity": likeness[rows, own],
            f"found among {len(self._names)}": likeness.argmax(1) == own,
            "nearer than its twin": [
                self._nearer(row, mine, case) for row, mine, case in zip(likeness, own, cases, strict=True)
            ],
            "colours": [_colours(row, case.target) for row, case in zip(found["colours"], cases, strict=True)],
        }
        for name, choices in CHOICES.items():
            asked = np.array([choices.index(getattr(case.target, name)) for case in cases])
            scores[name] = found[name].argmax(1) == asked
        scores["view is not the reference's"] = found["view"].argmax(1) != self._found["view"][references].argmax(1)
        scores["place is the reference's"] = [
            _is_the_references(CHOICES["place"][place], case)
            for place, case in zip(found["place"].argmax(1), cases, strict=True)
        ]
        return {name: np.asarray(value, float) for name, value in scores.items()}

    def own_error(self) -> dict[str, float]:
        """Share of the real photos, all of them, that the probe classifies correctly."""
        right = {
            name: self._found[name].argmax(1) == [choices.index(getattr(photo, name)) for photo in self._photos]
            for name, choices in CHOICES.items()
        }
        right["colours"] = [
            _colours(row, photo) for row, photo in zip(self._found["colours"], self._photos, strict=True)
        ]
        return {name: round(float(np.mean(values)), 3) for name, values in right.items()}

    def _nearer(self, likeness: np.ndarray, own: int, case: Case) -> float:
        twin = self._twins.get(case.target.subject)
        known = twin is not None and twin in self._names
        return float(likeness[own] > likeness[self._names.index(twin)]) if known else np.nan

    def _likeness(self, embedding: np.ndarray, case: Case) -> np.ndarray:
        """Mean cosine with the photos of each subject, but with neither target nor reference."""
        kept = np.array([photo is not case.target and photo is not case.reference for photo in self._photos])
        cosine = self._found["subject"][kept] @ embedding
        return np.bincount(self._owner[kept], weights=cosine) / np.bincount(self._owner[kept])

    @torch.no_grad()
    def _see(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        parts = [self._probe(part) for part in images.split(64)]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def place_of(photos: Sequence[Photo], wanted: Photo) -> int:
    """Index of this very photo."""
    return next(index for index, photo in enumerate(photos) if photo is wanted)


def _is_the_references(place: str, case: Case) -> float:
    """Whether the background is the reference's; NaN if the prompt asks for that one."""
    return np.nan if case.reference.place == case.target.place else float(place == case.reference.place)


def _colours(logits: np.ndarray, photo: Photo) -> float:
    """Share of the photo's colours among as many that are seen most clearly."""
    seen = {COLOURS[index] for index in np.argsort(-logits)[: len(photo.colours)]}
    return len(seen & set(photo.colours)) / len(photo.colours)
