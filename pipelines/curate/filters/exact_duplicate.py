"""Filter of files with the same bytes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope, Trait


@dataclass(frozen=True)
class ExactDuplicate:
    """Keep the first of all images with the same bytes, also across subjects and shards."""

    scope: ClassVar[Scope] = "content"
    summary: ClassVar[str] = "Repetitions of a file, also across subjects and shards"
    traits: ClassVar[tuple[Trait, ...]] = ("can_skip",)

    def drop(self, photos: Photos) -> np.ndarray:
        _, first = np.unique(photos.contents, return_index=True)
        repeated = np.ones(len(photos), bool)
        repeated[first] = False
        return repeated
