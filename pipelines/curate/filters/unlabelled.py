"""Images of nobody knows whom."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope


@dataclass(frozen=True)
class Unlabelled:
    """Drops images whose ``key.json`` is missing, broken, or names no subject."""

    scope: ClassVar[Scope] = "image"

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["subject"] == "", bool)
