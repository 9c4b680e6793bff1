"""Summary of a plan that can be added over partitions: counts, histograms, and examples of each reason."""

import heapq
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.rows import unit_hash

EXAMPLES_PER_REASON = 12
CAPTIONS_KEPT = 500
_VALUES_AT_ONCE = 1 << 20
_NOTED = re.compile(r"(?:^|; )(\w+): ")


@dataclass(frozen=True)
class Histogram:
    """The bins of a histogram. Values outside are counted in the outermost bins."""

    first: float
    """Left edge of the first bin."""
    last: float
    """Right edge of the last bin."""
    bins: int
    """Number of bins of equal width."""
    log_base: int | None = None
    """If set, the logarithm of a value to this base is counted."""


HISTOGRAMS = {
    "similarity of photos of one subject": Histogram(0, 1, 50),
    "similarity of references to their target": Histogram(0, 1, 50),
    "images kept of a subject": Histogram(0, 32, 32),
    "triplets of a subject": Histogram(0, 32, 32),
    "short side, px": Histogram(4, 12, 32, log_base=2),
    "sharpness": Histogram(0, 4, 32, log_base=10),
    "brightness": Histogram(0, 256, 32),
}


@dataclass
class Summary:
    """Counts of one partition, or of all together."""

    images: int = 0
    """Rows of the image table."""
    kept: int = 0
    """Images without a reason to drop them."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Images dropped, by reason."""
    subjects_in: int = 0
    """Subjects of the image table."""
    subjects: int = 0
    """Subjects with a triplet."""
    bounded_subjects: int = 0
    """Subjects with more photos than ``filters.large_subject.max_photos``."""
    triplets: int = 0
    """Planned triplets."""
    classes: Counter[str] = field(default_factory=Counter)
    """Subjects with a triplet, by class."""
    noted: Counter[str] = field(default_factory=Counter)
    """Images with a note, by its kind (``caption``, ``image``, ``json``, ...)."""
    captions: dict[str, str] = field(default_factory=dict)
    """Captions of the kept images with the lowest content hashes, by content hash."""
    histograms: dict[str, list[int]] = field(default_factory=dict)
    """Counts of :data:`HISTOGRAMS`."""
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """A few dropped images of each reason, chosen by hash."""

    def count(self, name: str, values: np.ndarray) -> None:
        """Add ``values`` to a histogram."""
        chart = HISTOGRAMS[name]
        counts = np.zeros(chart.bins, np.int64)
        for first in range(0, max(1, len(values)), _VALUES_AT_ONCE):
            some = values[first : first + _VALUES_AT_ONCE]
            if chart.log_base is not None:
                some = np.log(np.maximum(some, 1e-9)) / np.log(chart.log_base)
            inside = np.clip(some, chart.first, np.nextafter(chart.last, chart.first))
            counts += np.histogram(inside, bins=chart.bins, range=(chart.first, chart.last))[0]
        self.histograms[name] = np.add(self.histograms.get(name, 0), counts).tolist()

    def add_examples(self, reason: str, rows: list[dict[str, Any]]) -> None:
        """Add ``rows``, and keep the first few in the order of their hashes."""
        rows = self.examples.get(reason, []) + rows
        rows.sort(key=lambda row: unit_hash("example", row["shard"], row["key"], row["offset"]))
        self.examples[reason] = rows[:EXAMPLES_PER_REASON]

    def add_notes(self, notes: pa.ChunkedArray) -> None:
        """Count images by the kinds of their notes: ``caption: cut …; image: …`` counts once for each of the two."""
        for note in pc.value_counts(notes.filter(pc.not_equal(notes, ""))).to_pylist():
            for kind in set(_NOTED.findall(note["values"])):
                self.noted[kind] += note["counts"]

    def add_captions(self, captions: dict[str, str]) -> None:
        """Add ``captions``, and keep those of the lowest hashes."""
        captions = self.captions | captions
        self.captions = {content: captions[content] for content in heapq.nsmallest(CAPTIONS_KEPT, captions)}

    def add(self, other: "Summary") -> None:
        """Add the summary of another partition."""
        for name in ("images", "kept", "subjects_in", "subjects", "bounded_subjects", "triplets"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.classes.update(other.classes)
        self.noted.update(other.noted)
        self.add_captions(other.captions)
        for name, counts in other.histograms.items():
            self.histograms[name] = np.add(self.histograms.get(name, 0), counts).tolist()
        for reason, rows in other.examples.items():
            self.add_examples(reason, rows)
