"""Images that are not good to look at."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lookalike.annotators.base import Scorer
from lookalike.annotators.scorers import ClassProbability
from pipelines.curate.filters.base import SCORE, Photos, Scope


@dataclass(frozen=True)
class Aesthetic:
    """Drops images to which an aesthetic predictor gives too little."""

    model: str
    """Image classifier of transformers, by folder or Hub id: with one output, a score from 0 to 10; with several, the
    probability of ``label``."""
    label: str | None = None
    """Label of a good image; needless with one output."""
    min_score: float = 4.5
    """OpenS2V-5M asks for 4.5 of the LAION predictor's 10."""

    scope: ClassVar[Scope] = "score"

    @property
    def scorer(self) -> Scorer:
        return ClassProbability(self.model, self.label)

    def asks(self, photos: Photos) -> np.ndarray:
        return np.ones(len(photos), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos[SCORE] < self.min_score, bool)
