"""Cosine similarity of images to photos of a subject: which photos, at which size, and how the cosines are averaged.

Formula, with e(x) the embedding of x at unit norm, g an image and r1 … rn photos:
``pairwise``: (1/n) Σ e(g)·e(ri), as DreamBench (Ruiz et al. 2023, DreamBooth, section 4.2: the average pairwise cosine
similarity); ``mean_embedding``: e(g)·m/|m| with m = (1/n) Σ e(ri), which is never smaller in absolute value.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from lookalike.evaluation.metrics.base import Pixels, Task, at_size_of
from lookalike.values import configuration

Rows = npt.NDArray[np.floating]  # [B, D], of unit norm
Embed = Callable[[Sequence[Pixels]], Rows]

_BATCH = 16  # images of a forward pass on a GPU
_MOST_KEPT = 4_096  # embeddings, of a few kB each


@configuration()
class LikenessConfig:
    """Which photos of a subject an image is compared with, and how; the defaults are those of DreamBench."""

    references: Literal["all", "given", "targets"] = "all"
    """``all``: with all real photos of the subject that the suite has (DreamBooth); ``given``: with the references that
    the model was given (DreamBench++, which has one); ``targets``: with the photos that are targets of the suite, which
    of held-out photos are those that the model has never seen."""
    aggregation: Literal["pairwise", "mean_embedding"] = "pairwise"
    """``pairwise``: mean of the cosines; ``mean_embedding``: cosine to the mean of the photos' embeddings."""
    photo_size: Literal["file", "image"] = "file"
    """``file``: a photo goes to the model's preprocessing as it is (both benchmarks); ``image``: it is first cropped
    and resized to the size of the generated image, so that sharpness does not change the similarity."""


class Embeddings:
    """An embedder whose vectors never depend on the other images of a call, and that keeps those of recent images.

    On a CPU it embeds one image at a time, which is fastest there. On a GPU it embeds ``batch`` at a time, the last
    batch filled up: batches of equal length run the same kernels. Threads may share one.
    """

    def __init__(self, embed: Embed, device: str = "cpu", *, batch: int = _BATCH) -> None:
        self._embed, self._batch = embed, 1 if device == "cpu" else batch
        self.revision: str = getattr(embed, "revision", "")
        self._kept: dict[bytes, npt.NDArray[np.float64]] = {}

    def __call__(self, images: Sequence[Pixels]) -> Rows:
        """Embed uint8 images [H, W, 3] of any sizes, at least one: float64 [B, D], rows of unit norm."""
        keys = [_identity_of(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._kept}
        vectors = {key: self._kept[key] for key in keys if key in self._kept}
        for first in range(0, len(new), self._batch):
            part = list(new)[first : first + self._batch]
            filled = part + part[-1:] * (self._batch - len(part))
            rows = np.asarray(self._embed([new[key] for key in filled]), dtype=np.float64)
            vectors |= zip(part, rows, strict=False)
        self._kept |= vectors
        for key in list(self._kept)[: len(self._kept) - _MOST_KEPT]:
            self._kept.pop(key, None)  # another thread may have removed it
        return np.stack([vectors[key] for key in keys])


class Likeness:
    """Similarity of images to photos under one embedder, as a configuration says: -1 to 1."""

    def __init__(self, embed: Embeddings, config: LikenessConfig) -> None:
        self.embed, self.config = embed, config

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[float | None]:
        """Similarity of each image to the photos of its task's subject; None if the task has none."""
        return self.to(images, [self._photos(task) for task in tasks])

    def _photos(self, task: Task) -> Sequence[Pixels]:
        if self.config.references == "all":
            return task.photos or task.references
        return task.references if self.config.references == "given" else task.targets

    def to(self, images: Sequence[Pixels], photos: Sequence[Sequence[Pixels]]) -> list[float | None]:
        """Similarity of each image to the photos of the same index; None if there are none."""
        return [self._of(image, own) if len(own) else None for image, own in zip(images, photos, strict=True)]

    def _of(self, image: Pixels, photos: Sequence[Pixels]) -> float:
        if self.config.photo_size == "image":
            photos = at_size_of(image, photos)
        rows = self.embed([image, *photos])
        if self.config.aggregation == "pairwise":
            return float((rows[1:] @ rows[0]).mean())
        mean = rows[1:].mean(axis=0)
        norm = float(np.linalg.norm(mean))
        return float(mean @ rows[0]) / norm if norm else 0.0


def _identity_of(image: Pixels) -> bytes:
    pixels = np.ascontiguousarray(image)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
