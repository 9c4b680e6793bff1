"""Subjects with one photograph, which has nothing to be paired with."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope


@dataclass(frozen=True)
class SinglePhoto:
    """Drops the photo of a subject that has only one left."""

    scope: ClassVar[Scope] = "subject"

    def drop(self, photos: Photos) -> np.ndarray:
        return np.full(len(photos), len(photos) < 2)
