"""Filter of images with a low aesthetic score."""

from typing import ClassVar

import numpy as np

from lookalike.annotators.base import Scorer
from lookalike.annotators.scorers import ClassProbability
from lookalike.values import configuration
from pipelines.curate.filters.base import SCORE, Photos, Scope, Trait


@configuration("filters.aesthetic")
class Aesthetic:
    """Drop images to which an aesthetic predictor gives a low score."""

    model: str
    """Image classifier of transformers, by folder or Hub id: with one output, a score from 0 to 10; with several, the
    probability of ``label``."""
    label: str | None = None
    """Label of a good image; not used with one output."""
    min_score: float = 4.5
    """Minimum score; OpenS2V-5M uses 4.5 of the LAION predictor's 10."""

    scope: ClassVar[Scope] = "score"
    summary: ClassVar[str] = "Images with a low score by the aesthetic model"
    traits: ClassVar[tuple[Trait, ...]] = ()

    @property
    def scorer(self) -> Scorer:
        return ClassProbability(self.model, self.label)

    def asks(self, photos: Photos) -> np.ndarray:
        return np.ones(len(photos), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos[SCORE] < self.min_score, bool)
