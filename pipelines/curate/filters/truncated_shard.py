"""Filter of samples that were cut off with their shard."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope, Trait


@dataclass(frozen=True)
class TruncatedShard:
    """Drop the sample that a broken tar cuts in two. Samples before the break are judged as any other."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "The sample that a broken tar cuts in two"
    traits: ClassVar[tuple[Trait, ...]] = ()

    def drop(self, photos: Photos) -> np.ndarray:
        return np.asarray(photos["cut"], bool)
