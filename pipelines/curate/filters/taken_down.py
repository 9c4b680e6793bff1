"""Images that somebody had removed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipelines.curate.filters.base import Photos, Scope
from pipelines.curate.takedown import read_list


@dataclass(frozen=True)
class TakenDown:
    """Drops what the take-down list names; the manifest says which earlier snapshots held it."""

    list: str | None = None
    """URI of a text file with an entry on each line: the SHA-256 of an image's bytes, ``key:KEY``, ``subject:NAME`` or
    ``source:TEXT``, each as in the raw shards; ``#`` begins a comment. null: nothing is taken down."""

    scope: ClassVar[Scope] = "image"

    def drop(self, photos: Photos) -> np.ndarray:
        if self.list is None:
            return np.zeros(len(photos), bool)
        return read_list(self.list).named(photos.rows)
