"""Filter of images with watermarks, captions or logos."""

from typing import ClassVar

import numpy as np

from lookalike.annotators.base import Scorer
from lookalike.annotators.scorers import TextShare
from lookalike.values import configuration
from pipelines.curate.filters.base import SCORE, Photos, Scope, Trait


@configuration("filters.overlaid_text")
class OverlaidText:
    """Drop images of which lines of readable text cover too large a share."""

    max_share: float = 0.02
    """Maximum share of the image's area that all lines of text cover."""

    scope: ClassVar[Scope] = "score"
    summary: ClassVar[str] = "Images that readable text covers too much of"
    traits: ClassVar[tuple[Trait, ...]] = ()

    @property
    def scorer(self) -> Scorer:
        return TextShare()

    def asks(self, photos: Photos) -> np.ndarray:
        return np.ones(len(photos), bool)

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos[SCORE] > self.max_share, bool)
