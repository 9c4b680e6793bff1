"""Filter of files that cannot be decoded."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope, Trait


@dataclass(frozen=True)
class Undecodable:
    """Drop files that do not decode to the last row; the column ``error`` says why."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Files that cannot be decoded to the last row"
    traits: ClassVar[tuple[Trait, ...]] = ()

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["error"] != "", bool)
