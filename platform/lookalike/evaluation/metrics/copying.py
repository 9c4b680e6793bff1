"""``copying``: 1.0 if an image repeats the subject of a reference in its pixels, else 0.0: its mean is a share;
``copying_similarity``: how similar the nearest place of the image is to the nearest reference.

Formula: agreement in structure after alignment, see ``matching.py`` and ``structure.py``; the greatest over all
references. Source: this project. Range: 0 to 1, higher is worse. Model: none. An image is flagged from ``threshold``
(setting of ``copying``, default :data:`THRESHOLD`), which was fixed on subjects of the sample world apart from those in
``tests/bench/results/copying.json``, where precision and recall stand.

It sees copies that are moved, mirrored, scaled (the subject at 0.3 to 1.5 of the image's side), in other colours,
moderately blurred or saved as JPEG. In images of 64 pixels it misses more of them: about one in four cutouts that are
recoloured or saved as JPEG, and of real photos more than one in four copies. It cannot see: copies that are turned or
bent; a subject smaller than about 15 pixels; a copy of which less than 60 % is in the image; whether a subject without
any texture that is rendered anew in the same view and light was copied, since that is the same image.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from annotated_types import Gt, Le

from lookalike.evaluation.metrics.base import Pixels, Settings, Task
from lookalike.evaluation.metrics.matching import SubjectCache, greatest_similarity
from lookalike.evaluation.metrics.options import options_of
from lookalike.values import configuration

THRESHOLD = 0.90
"""Similarity from which an image counts as a copy."""


@configuration()
class CopyingOptions:
    """Settings of ``copying``."""

    threshold: Annotated[float, Gt(0), Le(1)] = THRESHOLD
    """Similarity from which an image counts as a copy."""


class Copying:
    """Similarity to the nearest crop of a reference, and whether it is so great that the image is a copy."""

    labels: ClassVar[Mapping[str, str]] = {
        "copying": "copies of a reference",
        "copying_similarity": "similarity to the nearest crop of a reference",
    }
    likeness: ClassVar[Sequence[str]] = ()
    shares: ClassVar[Sequence[str]] = ("copying",)
    configurations: ClassVar[Mapping[str, type]] = {"copying": CopyingOptions}
    switch: ClassVar[str] = "copying"

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self._subjects = SubjectCache()

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Copying | None":
        """Turned on unless the settings say ``copying: false``. Raises ConfigError for a threshold that is none."""
        if settings.metrics.get("copying") is False:
            return None
        return cls((options_of(settings, "copying", CopyingOptions) or CopyingOptions()).threshold)

    def protocol(self) -> dict[str, Any]:
        """Every choice behind the values."""
        return {"threshold": self._threshold}

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        for image, task in zip(images, tasks, strict=True):
            similarity = greatest_similarity(self._subjects, image, task.references)
            rows.append(
                {}
                if similarity is None
                else {"copying": float(similarity >= self._threshold), "copying_similarity": similarity}
            )
        return rows
