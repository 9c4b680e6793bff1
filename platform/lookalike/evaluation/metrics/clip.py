"""``clip_i``, ``clip_t``: CLIP-I and CLIP-T of DreamBench, cosines of an image with its references and its prompt.

Range: -1 to 1, higher is better. The model is the user's (``openai/clip-vit-base-patch32`` in the DreamBooth paper).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lookalike.evaluation.metrics.base import Pixels, Settings, Task, similarity

if TYPE_CHECKING:
    from lookalike.evaluation.clip import ClipScorer


@dataclass(frozen=True)
class Clip:
    """Mean cosine similarity to the references, and cosine similarity to the prompt, under CLIP."""

    labels: ClassVar[Mapping[str, str]] = {"clip_i": "CLIP-I", "clip_t": "CLIP-T"}
    scorer: "ClipScorer"

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Clip | None":
        from lookalike.evaluation.clip import ClipScorer

        return cls(ClipScorer(settings.clip, device)) if settings.clip else None

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        return [
            {
                "clip_i": similarity(self.scorer.images, image, task.references),
                "clip_t": float((self.scorer.images([image]) @ self.scorer.texts([task.prompt]).T).item()),
            }
            for image, task in zip(images, tasks, strict=True)
        ]
