"""The photos that a training run may have learned from: those in the training triplets of its snapshot."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.config import canonical_json
from lookalike.documents import parse_json
from pipelines.actors import Columns, run_tasks
from pipelines.curate.rows import hash_range
from pipelines.curate.snapshot_tables import FEW, Snapshot, ranges_of_subjects

_COLUMNS = ("sha256", "shard", "key", "offset", "length", "subject", "licence", "source")


@dataclass(frozen=True)
class PhotosWork:
    """A snapshot, and into how many ranges of subject hashes it is divided."""

    snapshot: Snapshot
    ranges: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> "PhotosWork":
        """Divide a snapshot into ranges that fit into memory."""
        return cls(snapshot, ranges_of_subjects([[snapshot.table("images"), snapshot.table("train")]]))


def learned_in(work: PhotosWork, unit: int) -> pa.Table:
    """The photos of one range that training triplets use as target or reference, in the order of the snapshot."""
    span = hash_range(unit, work.ranges)
    images = work.snapshot.table("images").read_span(span, [*_COLUMNS, "drop_reason"])
    triplets = work.snapshot.table("train").read_span(span, ["target_image", "reference_images"])
    if images is None or triplets is None:
        return pa.table({name: pa.array([], pa.string()) for name in _COLUMNS})
    chunks = [chunk.cast(pa.string()) for chunk in triplets["target_image"].chunks]
    chunks += [pc.list_flatten(chunk).cast(pa.string()) for chunk in triplets["reference_images"].chunks]
    used = pa.chunked_array(chunks, pa.string())
    kept = images.filter(pc.and_(pc.is_null(images["drop_reason"]), pc.is_in(images["sha256"], used)))
    return kept.select(list(_COLUMNS))


def count_learned(work: PhotosWork, unit: int) -> Columns:
    """Count the photos of :func:`learned_in` by raw shard; returns ``shards``, the counts in JSON."""
    counts = Counter(learned_in(work, unit)["shard"].to_pylist())
    return {"shards": np.array([canonical_json(counts)], object)}


def photos_by_shard(work: PhotosWork) -> Counter[str]:
    """Number of photos that training triplets use, by the key of their raw shard: one entry a shard, not a photo."""
    counts = Counter[str]()
    noun = "ranges of subjects searched"
    for table in run_tasks(count_learned, work, work.ranges, noun=noun, few=FEW):
        for text in table["shards"].to_pylist():
            counts.update(parse_json(text, work.snapshot.uri))
    return counts


def photos(work: PhotosWork) -> Iterator[dict[str, Any]]:
    """Yield each photo of :func:`learned_in`, a range at a time, in the order of the snapshot."""
    for unit in range(work.ranges):
        yield from learned_in(work, unit).to_pylist()
