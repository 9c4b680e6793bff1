"""``dino_i``: DINO-I of DreamBench, the cosine of the embeddings of an image and its references by a DINO model.

Range: -1 to 1, higher is better. The model is the user's (``facebook/dino-vits16`` in the DreamBooth paper).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lookalike.annotators.base import Embedder
from lookalike.annotators.embedder import load_embedder
from lookalike.evaluation.metrics.base import Pixels, Settings, Task, at_size_of, similarity


@dataclass(frozen=True)
class Dino:
    """Mean cosine similarity to the references under DINO."""

    labels: ClassVar[Mapping[str, str]] = {"dino_i": "DINO-I"}
    likeness: ClassVar[Sequence[str]] = ("dino_i",)
    embedder: Embedder

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Dino | None":
        return cls(load_embedder(settings.dino, device)) if settings.dino else None

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        return [
            {"dino_i": similarity(self.embedder, image, at_size_of(image, task.references))}
            for image, task in zip(images, tasks, strict=True)
        ]
