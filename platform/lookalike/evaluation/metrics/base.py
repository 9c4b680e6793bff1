"""The protocol of metrics, and the task that an image is measured against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

Pixels = np.ndarray  # uint8 [H, W, 3]


@dataclass(frozen=True)
class Task:
    """What a generated image should show; what the model was given may differ (``--conditions shuffled``)."""

    case: str
    """Id of the case."""
    subject: str
    """The subject that the image should show."""
    prompt: str
    """The prompt that the image should follow."""
    references: Sequence[Pixels]
    """Photos of the subject, at the size of the generated image."""
    others: Sequence[Pixels]
    """Photos of another subject; empty if the suite has no other."""


class Settings(Protocol):
    """The settings of an evaluation that choose metrics and their models, see ``EvaluateConfig``."""

    @property
    def embedder(self) -> str: ...
    @property
    def clip(self) -> str | None: ...
    @property
    def dino(self) -> str | None: ...
    @property
    def metrics(self) -> Mapping[str, Any]: ...


class Metric(Protocol):
    """A metric of generated images, or several that share their models.

    Each value belongs to one image, and an estimate is their mean, with an interval that resamples subjects. Values
    must not depend on the other images of the call, since their number is a matter of speed.
    """

    labels: ClassVar[Mapping[str, str]]
    """Name of each value in ``scores.json`` -> heading in the report. Gates refer to the name."""

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Metric | None":
        """The metric with its models on ``device``; None if the settings do not turn it on.

        Raises InputError if the model does not exist.
        """

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> Sequence[Mapping[str, float]]:
        """For each image a value by name; a name is left out if the value cannot be measured for that image."""


def similarity(embed: Any, image: Pixels, photos: Sequence[Pixels]) -> float:
    """Mean cosine similarity of ``image`` to ``photos`` under ``embed`` (images -> rows of unit norm [B, D])."""
    rows = embed([image, *photos])
    return float((rows[1:] @ rows[0]).mean())
