"""How much the images of one subject differ from each other, and from the real photos.

| name | formula | range | model |
|---|---|---|---|
| ``diversity`` | mean distance (1 - cosine) of two images under the embedder | 0 to 2 | the embedder of ``identity`` |
| ``nearer_than_real`` | share of images that are nearer to one reference than any two different real photos of the \
subject are to each other, under the embedder | 0 to 1; higher is worse | the embedder |
| ``variety_pose`` | v / (v + r), where v is the mean distance of the poses of two images and r that of two real \
photos: 0.5 means as different as the real photos | 0 to 1 | none |
| ``variety_background`` | likewise of the backgrounds | 0 to 1 | none |

A pose is described by the edges inside the subject's bounding box: the mean of the orientation field
(``structure.py``) in 6 x 6 cells, weighted by the estimated foreground. A background is described by the colours of the
image's outer eighth (Lab histogram, Hellinger distance).

Source: this project; ``diversity`` is after DreamBooth's DIV (Ruiz et al. 2023), which has LPIPS in place of an
embedder.

What they cannot see: a pose that differs in depth only, or a subject without edges; changes of a background in its
middle, or of its texture without its colours; whether the subject is the right one. Images of equal seeds and prompts
are equal, so the variety of a suite with one prompt and one seed means nothing. All need two images of a subject, and
all but ``diversity`` two different photos; otherwise they are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.annotators.base import Embedder
from lookalike.annotators.foreground import colour_histogram, foreground_weight
from lookalike.evaluation.metrics.base import Pixels, Settings, Task, at_size_of
from lookalike.evaluation.metrics.embedders import embedder_of
from lookalike.evaluation.metrics.likeness import Embeddings
from lookalike.evaluation.metrics.matching import pixels_key
from lookalike.evaluation.metrics.structure import orientations
from lookalike.pixels import crop_resize

Vectors = npt.NDArray[np.floating]  # [B, D], rows of unit norm

_POSE_SIDE, _CELLS = 48, 6  # px of the subject's bounding box, cells of an axis
_BACKGROUND_SIDE, _BORDER = 64, 1 / 8  # px of the image, share of its side
_SMALLEST = 1e-6  # distance of photos that do not differ


class Variety:
    """Variety of pose and background, diversity, and nearness to single references."""

    labels: ClassVar[Mapping[str, str]] = {
        "variety_pose": "variety of poses",
        "variety_background": "variety of backgrounds",
        "nearer_than_real": "nearer to a reference than real photos",
        "diversity": "diversity",
    }
    shares: ClassVar[Sequence[str]] = ("nearer_than_real",)
    configurations: ClassVar[Mapping[str, type]] = {}
    switch: ClassVar[str] = "diversity"

    def __init__(self, embedder: Embedder | Embeddings) -> None:
        self._embed, self._revision = embedder, embedder.revision

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Variety | None":
        """Turned on unless the settings say ``diversity: false``. Raises ConfigError if there is no such embedder."""
        return None if settings.metrics.get("diversity") is False else cls(embedder_of(settings, device))

    def protocol(self) -> dict[str, Any]:
        """The revision of the embedder."""
        return {"model": self._revision}

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> dict[str, float]:
        if len(images) != len(tasks) or len({task.subject for task in tasks}) > 1:
            raise ValueError("variety is measured of the images of one subject, each with its task")
        if len(images) < 2:
            return {}
        embedded = np.stack([self._embed([image])[0] for image in images])
        values = {"diversity": mean_distance(embedded)}
        photos = _different([photo for task in tasks for photo in task.photos], images[0])
        if len(photos) < 2:
            return values
        values["nearer_than_real"] = self._nearer_than_real(images, embedded, tasks, photos)
        for name, describe in (("variety_pose", pose), ("variety_background", background)):
            groups = [np.stack([describe(image) for image in group]) for group in (images, photos)]
            own, real = map(mean_distance, groups)
            if own + real > _SMALLEST and all(group.any(1).all() for group in groups):
                values[name] = own / (own + real)
        return values

    def _nearer_than_real(
        self, images: Sequence[Pixels], embedded: Vectors, tasks: Sequence[Task], photos: Sequence[Pixels]
    ) -> float:
        real = np.stack([self._embed([photo])[0] for photo in photos])
        nearest_pair = max(float((real[:at] @ real[at]).max()) for at in range(1, len(real)))
        vectors: dict[str, npt.NDArray[np.floating]] = {}
        nearer = []
        for image, vector, task in zip(images, embedded, tasks, strict=True):
            for reference in _different(task.references, image):
                key = pixels_key(reference)
                if key not in vectors:
                    vectors[key] = self._embed([reference])[0]
            own = [float(vectors[pixels_key(reference)] @ vector) for reference in _different(task.references, image)]
            nearer.append(max(own, default=-1.0) > nearest_pair)
        return float(np.mean(nearer))


def mean_distance(vectors: Vectors) -> float:
    """Mean of 1 - cosine over all pairs of two or more unit vectors [B, D]: 0 to 2."""
    rows = vectors.astype(np.float64)
    count = len(rows)
    cosines = (np.square(rows.sum(0)).sum() - np.square(rows).sum()) / (count * (count - 1))
    return float(np.clip(1 - cosines, 0, 2))


def pose(image: Pixels) -> npt.NDArray[np.float32]:
    """Describe how a subject lies in its bounding box: float32 [72] of unit norm; zero for an image without edges."""
    height, width = image.shape[:2]
    weight = Image.fromarray(foreground_weight(image))
    rows, columns = _extent(np.asarray(weight))
    size = (_POSE_SIDE, _POSE_SIDE)
    box = (columns[0] * width, rows[0] * height, columns[1] * width, rows[1] * height)
    crop = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box))
    place = (columns[0] * weight.width, rows[0] * weight.height, columns[1] * weight.width, rows[1] * weight.height)
    share = np.asarray(weight.resize(size, Image.Resampling.BILINEAR, box=place))
    side = _POSE_SIDE // _CELLS
    cells = (orientations(crop) * share).reshape(_CELLS, side, _CELLS, side).mean((1, 3)).ravel()
    return _unit(np.concatenate([cells.real, cells.imag]))


def background(image: Pixels) -> npt.NDArray[np.float32]:
    """Describe the colours of an image's border: float32 [256] of unit norm."""
    image = crop_resize(image, _BACKGROUND_SIDE, _BACKGROUND_SIDE)
    height, width = image.shape[:2]
    edge = round(height * _BORDER)
    inner = image[edge : height - edge]
    parts = [image[:edge], image[height - edge :], inner[:, :edge], inner[:, width - edge :]]
    pixels = np.concatenate([part.reshape(-1, 3) for part in parts])
    return _unit(colour_histogram(pixels[None], np.ones((1, len(pixels)))))


def _different(photos: Sequence[Pixels], image: Pixels) -> list[Pixels]:
    """The photos without repetitions, in the order of their pixels' hash, at the size of ``image``."""
    by_key = {pixels_key(photo): photo for photo in photos}
    return at_size_of(image, [by_key[key] for key in sorted(by_key)])


def _extent(weight: npt.NDArray[np.float32]) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last row and column (in parts of the side) within which 90 % of the weight lies on each axis."""
    spans = []
    for axis in (1, 0):
        total = weight.sum(axis, dtype=np.float64).cumsum()
        first, last = np.searchsorted(total, (0.05 * total[-1], 0.95 * total[-1]))
        spans.append((float(first) / len(total), float(last + 1) / len(total)))
    return spans[0], spans[1]


def _unit(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)
