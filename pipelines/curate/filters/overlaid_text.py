"""Watermarks, captions and logos over the picture."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lookalike.annotators.base import Scorer
from lookalike.annotators.scorers import TextShare
from pipelines.curate.filters.base import SCORE, Photos, Scope


@dataclass(frozen=True)
class OverlaidText:
    """Drops images much of which is covered by text that can be read."""

    max_share: float = 0.02
    """Of the image's area, lines of text together."""

    scope: ClassVar[Scope] = "score"

    @property
    def scorer(self) -> Scorer:
        return TextShare()

    def asks(self, photos: Photos) -> np.ndarray:
        return np.ones(len(photos), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos[SCORE] > self.max_share, bool)
