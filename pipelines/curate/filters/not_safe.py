"""Images that are not safe for work."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lookalike.annotators.base import Scorer
from lookalike.annotators.scorers import OpenNsfw
from pipelines.curate.filters.base import SCORE, Photos, Scope


@dataclass(frozen=True)
class NotSafe:
    """Drops images that open_nsfw takes for indecent."""

    max_score: float = 0.8
    """Probability from which on an image is dropped. The authors of open_nsfw call a score above 0.8 very likely not
    safe, and one below 0.2 very likely safe."""

    scope: ClassVar[Scope] = "score"

    @property
    def scorer(self) -> Scorer:
        return OpenNsfw()

    def asks(self, photos: Photos) -> np.ndarray:
        return np.ones(len(photos), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos[SCORE] > self.max_score, bool)
