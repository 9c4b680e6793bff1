"""What the tasks that write a version get, and the record of a unit of materialise, which finish reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike.data.part_lists import Part
from lookalike.documents import parse_record
from lookalike.storage import Store
from pipelines.curate.work import StageWork

LISTED = 1000  # units whose parts are in one list


@dataclass(frozen=True)
class Layout:
    """The division of all subjects into the units of materialise, and into the splits."""

    split_cut: float
    """Subjects whose split hash is below it are validation."""
    ends: np.ndarray
    """int64 [partitions]: the number of units of each partition and those before it."""

    @property
    def units(self) -> int:
        """Units of materialise."""
        return int(self.ends[-1])

    def partition_of(self, unit: int) -> tuple[int, int]:
        """Return the partition of a unit, and the unit's number in it."""
        partition = int(np.searchsorted(self.ends, unit, side="right"))
        return partition, unit - (int(self.ends[partition - 1]) if partition else 0)


@dataclass(frozen=True)
class StoredBefore:
    """The image table of the parent, whose stored images a version uses again."""

    version: Store
    """Store of the parent."""
    files: dict[str, str]
    """Hashes of the lists of its image table, by name, in their order."""
    first_hashes: tuple[int, ...]
    """The lowest subject hash of each list."""


@dataclass(frozen=True)
class MaterialiseWork:
    """What a task that stores images and writes parts of tables gets."""

    stage: StageWork
    version: Store
    """Store of the version that is being made."""
    layout: Layout
    before: StoredBefore | None = None
    """Where images are stored already; None if no parent has images in the same form."""
    tainted: frozenset[str] = frozenset()
    """Keys of packs with an image that was taken down; no image in them is used again."""

    @property
    def name(self) -> str:
        """Names the version and the parent whose images it uses, below ``work/``."""
        return self.version.name if self.before is None else f"{self.version.name}-of-{self.before.version.name}"


@dataclass(frozen=True)
class Done:
    """What a unit has written: the content of its record."""

    parts: dict[str, Part]
    """Its part of each table of which it has rows, by :data:`lookalike.data.part_lists.KINDS`."""
    packs: dict[str, list[int]]
    """[images that the unit uses, bytes of the pack] for each pack that has any of its images, by key."""
    images_stored: int
    """Images that the unit has written."""
    bytes_stored: int
    """Bytes of their JPEG files."""
    images_reused: int
    """Images that an earlier version has stored."""
    bytes_reused: int
    examples: dict[str, list[dict[str, Any]]]
    """A few triplets, as :class:`pipelines.curate.examples.Examples` chooses them."""

    @classmethod
    def of(cls, work: MaterialiseWork, unit: int) -> "Done":
        """Read the record of a unit that is done."""
        store, key = work.stage.dataset, work.stage.workspace.materialised(work.name, unit)
        return parse_record(cls, store.read(key), store.uri_of(key))
