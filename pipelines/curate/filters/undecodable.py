"""Files that are no image, or not a whole one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope


@dataclass(frozen=True)
class Undecodable:
    """Drops what does not decode to the last row; the column ``error`` says why."""

    scope: ClassVar[Scope] = "image"

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["error"] != "", bool)
