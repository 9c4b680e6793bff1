"""Samples that were cut off with their shard."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope


@dataclass(frozen=True)
class TruncatedShard:
    """Drops the sample that a broken tar cuts in two. Samples before the break are judged as any other."""

    scope: ClassVar[Scope] = "image"

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["cut"], bool)
