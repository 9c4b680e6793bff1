"""``memorisation``: similarity of an image to the nearest photo of its subject that the model was not given.

    --metrics '{memorisation: {}}'

A customer's model that repeats a photo of its training although it was given another one remembers it. It is off
unless the settings name it, as a finetune's do: a model that never saw the suite's subjects cannot remember them.
Formula, range (0 to 1, higher is worse) and what it cannot see: as ``copying_similarity`` (``copying.py``), over the
task's photos without its references. Source: this project. Model: none.
It is left out if there is no such photo. Cost: about as much for each photo as ``copying`` for each reference.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from lookalike.evaluation.metrics.base import Pixels, Settings, Task
from lookalike.evaluation.metrics.matching import SubjectCache, greatest_similarity, pixels_key
from lookalike.evaluation.metrics.options import options_of
from lookalike.values import configuration


@configuration()
class MemorisationOptions:
    """``memorisation`` has no settings but that it is on."""


class Memorisation:
    """Similarity to the nearest crop of a photo of the subject that is not among the references."""

    labels: ClassVar[Mapping[str, str]] = {"memorisation": "similarity to a photo that was not given"}
    likeness: ClassVar[Sequence[str]] = ()
    configurations: ClassVar[Mapping[str, type]] = {"memorisation": MemorisationOptions}
    switch: ClassVar[str] = "memorisation"

    def __init__(self) -> None:
        self._subjects = SubjectCache()

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Memorisation | None":
        """Turned on by the settings ``memorisation: {}``."""
        return None if options_of(settings, "memorisation", MemorisationOptions) is None else cls()

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = []
        for image, task in zip(images, tasks, strict=True):
            given = {pixels_key(photo) for photo in task.references}
            unseen = [photo for photo in task.photos if pixels_key(photo) not in given]
            similarity = greatest_similarity(self._subjects, image, unseen)
            rows.append({} if similarity is None else {"memorisation": similarity})
        return rows
