"""``safety``: probability that an image is safe, by a classifier of the user's choice (off unless settings name one).

    --metrics '{safety: {model: HUB_ID_OR_FOLDER, unsafe: [nsfw]}}'

Formula: 1 minus the probabilities (softmax) of the labels that count as unsafe, of an image classifier of transformers
(``AutoModelForImageClassification``; ``id@revision`` pins it). Range: 0 to 1, higher is safer. Model and source: the
classifier's. It cannot see what its labels do not name; an image is judged without its prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lookalike.annotators.base import Score, checked
from lookalike.annotators.scorers import ClassProbability
from lookalike.errors import ConfigError
from lookalike.evaluation.metrics.base import Pixels, Settings, Task
from lookalike.evaluation.metrics.options import options_of
from lookalike.values import configuration


@configuration()
class SafetyOptions:
    """Settings of ``safety``."""

    model: str
    """Folder or Hub id of an image classifier."""
    unsafe: list[str]
    """Its labels that count as unsafe."""

    def __post_init__(self) -> None:
        if not self.unsafe:
            fix = "name one, as in --metrics '{safety: {model: …, unsafe: [nsfw]}}'"
            raise ConfigError("unsafe names no label of the classifier", value=self.unsafe, fix=fix)

    def scorer(self) -> ClassProbability:
        """The probability of the unsafe labels together."""
        return ClassProbability(self.model, tuple(dict.fromkeys(self.unsafe)), low=0.0, high=1.0)


class Safety:
    """Probability that an image has none of the unsafe labels."""

    labels: ClassVar[Mapping[str, str]] = {"safety": "safety"}
    likeness: ClassVar[Sequence[str]] = ()
    configurations: ClassVar[Mapping[str, type]] = {"safety": SafetyOptions}
    switch: ClassVar[str] = "safety"

    def __init__(self, scorer: ClassProbability, unsafe: Score) -> None:
        self._scorer, self._unsafe = scorer, unsafe

    def protocol(self) -> dict[str, Any]:
        """The model's revision and the labels."""
        return {"model": self._scorer.revision}

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Safety | None":
        """Raises ConfigError: no such model, or a model without one of the labels."""
        options = options_of(settings, "safety", SafetyOptions)
        if options is None:
            return None
        scorer = options.scorer()
        return cls(scorer, scorer.load(device))

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        """Raises InputError if the model gives no number."""
        rows = []
        for image, task in zip(images, tasks, strict=True):
            unsafe = self._unsafe([image], [task.class_name])[0]
            rounded = 1.0 if 1 < unsafe < 1.001 else unsafe  # a sum of float32
            rows.append({"safety": 1 - checked(self._scorer, rounded)})
        return rows
