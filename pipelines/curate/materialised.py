"""The record of a unit of materialise, which finish reads."""

from dataclasses import dataclass
from typing import Any

from lookalike.data.parts import Part
from lookalike.documents import parse_record
from pipelines.curate.work import MaterialiseWork

LISTED = 1000  # units whose parts are in one list


@dataclass(frozen=True)
class Done:
    """What a unit has written: the content of its record."""

    parts: dict[str, Part]
    """Its part of each table of which it has rows, by :data:`lookalike.data.parts.KINDS`."""
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
