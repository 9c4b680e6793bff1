"""A probe of images of the sample world: a small network that is trained on the truth about rendered photos.

Half of its training photos are encoded and decoded by the generator's VAE, so that it knows such images.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from lookalike.data.images import decode
from lookalike.data.shards import iter_samples
from lookalike.pixels import crop_resize
from lookalike.training.parts import FitConfig, fit, reconstruct
from pipelines.ingest.config import IngestConfig, SampleWorldConfig
from pipelines.ingest.sample import shapes, vocabulary
from pipelines.ingest.sample.source import TRUTH, plan_sample

SIDE = 64  # pixels
CHOICES = {
    "shape": shapes.names(),
    "pattern": list(vocabulary.PATTERNS),
    "place": list(vocabulary.PLACES),
    "view": list(vocabulary.VIEWS),
}
COLOURS = list(vocabulary.COLOURS)
EMBEDDING, SHARPNESS = 64, 16.0  # channels of a subject's embedding; scale of its cosines in the softmax
FIT = FitConfig(steps=6000, batch_size=32, learning_rate=2e-3, weight_decay=0.02, save_every=100)


@dataclass(frozen=True)
class Photo:
    """A rendered photo and the truth about it."""

    image: np.ndarray
    """uint8 ``[SIDE, SIDE, 3]``."""
    caption: str
    subject: str
    shape: str
    colours: tuple[str, ...]
    """Those that are to be seen: one of a plain subject."""
    pattern: str
    place: str
    view: str


def read_photos(raw: Path, world: SampleWorldConfig) -> list[Photo]:
    """The photos of a sample world in the order of their keys; existing shards in ``raw`` are reused."""
    plan = plan_sample(IngestConfig(source="sample", raw=str(raw), sample=world))
    truth, found = plan.extras[TRUTH]["photos"], {}
    raw.mkdir(parents=True, exist_ok=True)
    for shard in tqdm(plan.shards, desc=raw.name, unit="shard"):
        path = raw / shard.name
        if not path.exists():
            part = path.with_suffix(".part")
            shard.write(part)
            part.rename(path)
        with path.open("rb") as file:
            found |= {sample.key: _photo(members, truth[sample.key]) for sample, members in iter_samples(file)}
    return [found[key] for key in sorted(found)]


def _photo(members: dict[str, bytes], truth: dict[str, Any]) -> Photo:
    return Photo(
        crop_resize(decode(members["jpg"]), SIDE, SIDE),
        json.loads(members["json"])["caption"],
        truth["subject"],
        truth["class"],
        tuple(truth["colours"][: 1 if truth["pattern"] == "plain" else 2]),
        truth["pattern"],
        truth["place"],
        truth["view"]["name"],
    )


def to_tensor(images: Any) -> Tensor:
    """uint8 images ``[H, W, 3]`` → ``[B, 3, H, W]``."""
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


class Probe(nn.Module):
    """Predicts shape, pattern, place, view and colours, and embeds subjects so that photos of one subject are close."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 192)
        stages = [_stage(a, b, n) for a, b, n in zip((3, *widths[:-1]), widths, (0, 1, 2, 2), strict=True)]
        self.body = nn.Sequential(*stages, nn.GroupNorm(8, widths[-1]), nn.SiLU())
        seen = 2 * widths[-1]
        self.heads = nn.ModuleDict({name: nn.Linear(seen, len(values)) for name, values in CHOICES.items()})
        self.colours = nn.Linear(seen, len(COLOURS))
        self.embedding = nn.Linear(seen, EMBEDDING)
        self.subjects = nn.Parameter(torch.randn(subjects, EMBEDDING))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 ``[B, 3, H, W]`` → logits by the names of CHOICES and for ``colours``, and unit rows ``subject``."""
        found = self.body(images.float() / 127.5 - 1)
        # the place fills the picture and the subject does not: the strongest answer beside the mean one
        seen = torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)
        logits = {name: head(seen) for name, head in self.heads.items()}
        return {**logits, "colours": self.colours(seen), "subject": functional.normalize(self.embedding(seen), dim=1)}

    def loss(self, images: Tensor, photos: list[Photo], subjects: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of a batch of ``photos`` as ``images`` show them; ``subjects`` are their numbers ``[B]``."""
        found = self(images)
        losses = {
            name: functional.cross_entropy(
                found[name], torch.tensor([values.index(getattr(photo, name)) for photo in photos])
            )
            for name, values in CHOICES.items()
        }
        shown = torch.tensor([[float(colour in photo.colours) for colour in COLOURS] for photo in photos])
        losses["colours"] = len(COLOURS) / 2 * functional.binary_cross_entropy_with_logits(found["colours"], shown)
        known = functional.normalize(self.subjects, dim=1)
        losses["subject"] = functional.cross_entropy(SHARPNESS * found["subject"] @ known.T, subjects)
        return torch.stack(list(losses.values())).sum(), {name: value.item() for name, value in losses.items()}


def train_probe(photos: list[Photo], vae: Any, folder: Path, config: FitConfig = FIT) -> Probe:
    """Train a probe on these photos; its state is kept in ``folder``, and a stopped run resumes."""
    names = sorted({photo.subject for photo in photos})
    images = to_tensor([photo.image for photo in photos])
    images[::2] = reconstruct(vae, images[::2])
    subjects = torch.tensor([names.index(photo.subject) for photo in photos])
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        probe = Probe(len(names))

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.choice(len(photos), config.batch_size, replace=False)
        return probe.loss(_moved(images[chosen], rng), [photos[index] for index in chosen], subjects[chosen])

    fit(probe, loss, config, folder, "probe")
    return probe.eval()


def _moved(images: Tensor, rng: np.random.Generator, most: int = 4) -> Tensor:
    """Each image slightly shifted, with its border repeated, and slightly brighter or darker."""
    padded = functional.pad(images.float(), [most] * 4, mode="replicate")
    shifted = [
        image[:, y : y + SIDE, x : x + SIDE] * light
        for image, (y, x), light in zip(
            padded,
            rng.integers(0, 2 * most + 1, (len(images), 2)),
            rng.uniform(0.9, 1.1, len(images)),
            strict=True,
        )
    ]
    return torch.stack(shifted).clamp(0, 255)


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _stage(narrow: int, wide: int, blocks: int) -> nn.Sequential:
    """Halve the side, then apply residual blocks."""
    residual = [
        _Residual(
            nn.GroupNorm(8, wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.GroupNorm(8, wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
        )
        for _ in range(blocks)
    ]
    return nn.Sequential(nn.Conv2d(narrow, wide, 3, stride=2, padding=1), *residual)
