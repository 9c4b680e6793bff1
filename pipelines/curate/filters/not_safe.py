"""Filter of images that are not safe for work."""

from typing import ClassVar

import numpy as np

from lookalike.annotators.base import Scorer
from lookalike.annotators.scorers import OpenNsfw
from lookalike.values import configuration
from pipelines.curate.filters.base import SCORE, Photos, Scope, Trait


@configuration("filters.not_safe")
class NotSafe:
    """Drop images to which open_nsfw gives a high probability of being indecent."""

    max_score: float = 0.8
    """Maximum probability of a kept image. The authors of open_nsfw call a score above 0.8 very likely not safe, one
    below 0.2 very likely safe."""

    scope: ClassVar[Scope] = "score"
    summary: ClassVar[str] = "Images that the model takes for not safe for work"
    traits: ClassVar[tuple[Trait, ...]] = ()

    @property
    def scorer(self) -> Scorer:
        return OpenNsfw()

    def asks(self, photos: Photos) -> np.ndarray:
        return np.ones(len(photos), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos[SCORE] > self.max_score, bool)
