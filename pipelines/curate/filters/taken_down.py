"""Filter of images that were removed on request."""

from dataclasses import field
from typing import ClassVar

import numpy as np

from lookalike.values import Mib, configuration
from pipelines.curate.filters.base import Photos, Scope, Trait
from pipelines.curate.takedown import read_list

Entries = list[str]  # ``list`` is a field below


@configuration("filters.taken_down")
class TakenDown:
    """Drop the images that the take-down list names. The manifest says which earlier snapshots hold them."""

    list: str | None = None
    """URI of a text file with an entry on each line: the SHA-256 of an image's bytes, ``key:KEY``, ``subject:NAME`` or
    ``source:TEXT``, each as in the raw shards; a line that begins with ``#`` is a comment. Names are compared in
    Unicode's normal form NFC and without spaces at their ends, else exactly, and a ``file:`` URI by its path, whether
    its characters are percent-encoded or not. Files with the same bytes are dropped too. null: no list."""
    allow_unmatched: Entries = field(default_factory=Entries)
    """Entries of the list, as they are written there, that may name no image. Any other entry without an image fails
    the run, so that a typing error does not prevent a removal."""

    max_list_mib: Mib = 1024
    """Largest size of the list, in MiB: 1024 hold 16 million hashes."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Images that the take-down list names"
    traits: ClassVar[tuple[Trait, ...]] = ("hides_photos",)

    def drop(self, photos: Photos) -> np.ndarray:
        if self.list is None:
            return np.zeros(len(photos), bool)
        return read_list(self.list).matches(photos.rows)[0]
