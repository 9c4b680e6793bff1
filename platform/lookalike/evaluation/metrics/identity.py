"""``identity``: cosine of the embeddings of an image and its references; ``identity_margin``: minus that to others.

Range: -1 to 1, higher is better. It depends on the embedder, whose revision stands in ``scores.json``. A copied
reference scores highest, so a high value alone does not show that the subject was generated in another view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lookalike.annotators.base import Embedder
from lookalike.annotators.embedder import load_embedder
from lookalike.evaluation.metrics.base import Pixels, Settings, Task, at_size_of, similarity


@dataclass(frozen=True)
class Identity:
    """Mean cosine similarity to the references, and its margin over another subject's references."""

    labels: ClassVar[Mapping[str, str]] = {"identity": "identity", "identity_margin": "margin over another subject"}
    likeness: ClassVar[Sequence[str]] = ("identity",)
    embedder: Embedder

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Identity":
        return cls(load_embedder(settings.embedder, device))

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        rows = []
        for image, task in zip(images, tasks, strict=True):
            values = {"identity": similarity(self.embedder, image, at_size_of(image, task.references))}
            if task.others:
                values["identity_margin"] = values["identity"] - similarity(
                    self.embedder, image, at_size_of(image, task.others)
                )
            rows.append(values)
        return rows
