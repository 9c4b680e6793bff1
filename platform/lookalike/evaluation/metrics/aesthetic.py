"""``aesthetic``: how pleasing an image is, by a predictor of the user's choice (off unless the settings name one).

    --metrics '{aesthetic: {model: HUB_ID_OR_FOLDER, label: null, low: 0, high: 10}}'

Formula: the output of an image classifier of transformers (:class:`~lookalike.annotators.scorers.ClassProbability`): of
a model with one output that number (``low`` to ``high``), of one with several the probability of ``label`` (0 to 1).
Range: ``low`` to ``high``, or 0 to 1; higher is better. Model and source: the predictor's; ``id@revision`` pins a model
on the Hub. It cannot see what its training data did not teach; scores of different models do not compare.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lookalike.annotators.base import Score, checked
from lookalike.annotators.scorers import ClassProbability
from lookalike.evaluation.metrics.base import Pixels, Settings, Task
from lookalike.evaluation.metrics.options import options_of
from lookalike.values import configuration


@configuration()
class AestheticOptions:
    """Settings of ``aesthetic``, as of :class:`~lookalike.annotators.scorers.ClassProbability`."""

    model: str
    label: str | None = None
    low: float = 0.0
    high: float = 10.0


class Aesthetic:
    """Score of an aesthetic predictor."""

    labels: ClassVar[Mapping[str, str]] = {"aesthetic": "aesthetic score"}
    likeness: ClassVar[Sequence[str]] = ()
    configurations: ClassVar[Mapping[str, type]] = {"aesthetic": AestheticOptions}
    switch: ClassVar[str] = "aesthetic"

    def __init__(self, scorer: ClassProbability, score: Score) -> None:
        self._scorer, self._score = scorer, score

    def protocol(self) -> dict[str, Any]:
        """The model's revision with its label and range."""
        return {"model": self._scorer.revision}

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Aesthetic | None":
        """Raises ConfigError: no such model, or a model without the label."""
        options = options_of(settings, "aesthetic", AestheticOptions)
        if options is None:
            return None
        scorer = ClassProbability(**vars(options))
        return cls(scorer, scorer.load(device))

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        """Raises InputError if the model gives a score outside of its range."""
        scores = [self._score([image], [task.class_name])[0] for image, task in zip(images, tasks, strict=True)]
        return [{"aesthetic": checked(self._scorer, score)} for score in scores]
