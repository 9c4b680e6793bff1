"""Filter of images of which the subject is too small a part."""

from typing import ClassVar

import numpy as np

from lookalike.annotators.base import Scorer
from lookalike.annotators.scorers import ClassArea
from lookalike.errors import ConfigError
from lookalike.values import configuration
from pipelines.curate.filters.base import SCORE, Photos, Scope, Trait


@configuration("filters.subject_area")
class SubjectArea:
    """Drop images in which the subject covers too little, or nearly all; one of unknown area is kept."""

    min_share: float = 0.01
    """Minimum share of the image's area (UniWorld uses 1/100, OpenS2V-5M 1/32)."""
    max_share: float = 1.0
    """Above it too little of the scene is visible; 1 drops nothing."""
    model: str | None = None
    """CLIPSeg model of transformers, by folder or Hub id, that segments the sample's class if the sample has no mask.
    null: such an image is kept."""

    scope: ClassVar[Scope] = "score"
    summary: ClassVar[str] = "Images in which the subject covers too little, or nearly all"
    traits: ClassVar[tuple[Trait, ...]] = ("can_skip",)

    def __post_init__(self) -> None:
        if not 0 <= self.min_share < self.max_share <= 1:
            raise ConfigError(
                "filters.subject_area.min_share and max_share are not a range in 0 to 1",
                value=[self.min_share, self.max_share],
                fix="use 0 <= min_share < max_share <= 1",
            )

    @property
    def scorer(self) -> Scorer | None:
        return None if self.model is None else ClassArea(self.model)

    def asks(self, photos: Photos) -> np.ndarray:
        return np.asarray(np.isnan(photos["subject_area"].astype(float)))

    def drop(self, photos: Photos) -> np.ndarray:
        by_mask = photos["subject_area"].astype(float)
        share = np.where(np.isnan(by_mask), photos[SCORE], by_mask)
        return np.asarray((share < self.min_share) | (share > self.max_share), bool)
