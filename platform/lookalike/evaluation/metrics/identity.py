"""``identity``: cosine of the embeddings of an image and its references; ``identity_margin``: minus that to others.

Formula: see ``likeness.py``; ``identity_margin`` is ``identity`` minus the same for another subject's references.
Range: -1 to 1 (margin -2 to 2), higher is more alike. Model: ``--embedder``, by default one that comes in a Python
package and weighs the foreground and its colours (``annotators/foreground.py``); its revision stands in
``scores.json``. Photos are compared at the size of the image, so that sharpness does not count. Source: this project;
for numbers that can be compared with papers see ``dino.py`` and ``clip.py``.

It cannot see: whether the image was pasted from a reference, which scores highest; whether it follows the prompt; and
details that are smaller than the embedder's cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from lookalike.annotators.base import Embedder
from lookalike.evaluation.metrics.base import Pixels, Settings, Task, settings_of
from lookalike.evaluation.metrics.embedders import embedder_of
from lookalike.evaluation.metrics.likeness import Embeddings, Likeness, LikenessConfig
from lookalike.values import configuration


@configuration()
class IdentityConfig(LikenessConfig):
    """How identity is computed: by default with the given references, at the size of the generated image."""

    references: Literal["all", "given", "targets"] = "given"
    """As of DINO-I."""
    photo_size: Literal["file", "image"] = "image"
    """As of DINO-I."""


class Identity:
    """Similarity to the subject's photos, and its margin over that to another subject's references."""

    labels: ClassVar[Mapping[str, str]] = {"identity": "identity", "identity_margin": "margin over another subject"}
    likeness: ClassVar[Sequence[str]] = ("identity",)
    configurations: ClassVar[Mapping[str, type]] = {"identity": IdentityConfig}

    def __init__(
        self, embedder: Embedder | Embeddings, config: IdentityConfig | None = None, device: str = "cpu"
    ) -> None:
        self.config, self.revision = config or IdentityConfig(), embedder.revision
        embeddings = embedder if isinstance(embedder, Embeddings) else Embeddings(embedder, device)
        self._likeness = Likeness(embeddings, self.config)

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Identity":
        config = settings_of(settings, "identity", IdentityConfig)
        return cls(embedder_of(settings, device), config, device)

    def protocol(self) -> dict[str, Any]:
        """Every choice behind the values: the embedder's revision and the resolved settings."""
        return {"model": self.revision, **asdict(self.config)}

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        rows = []
        to_others = self._likeness.to(images, [task.others for task in tasks])
        for own, other in zip(self._likeness(images, tasks), to_others, strict=True):
            values = {} if own is None else {"identity": own}
            if own is not None and other is not None:
                values["identity_margin"] = own - other
            rows.append(values)
        return rows
