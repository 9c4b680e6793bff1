"""Exact duplicates: the one question that is asked across all subjects, answered from content hashes alone."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.actors import Columns
from pipelines.curate.filters import Photos
from pipelines.curate.tables import read_table, write_table
from pipelines.curate.work import StageWork

_COLUMNS = ("subject_hash", "shard", "offset", "key", "linked", "sha256")


def duplicates_key(work: StageWork, partition: int, order: Literal["subjects", "shards"] = "subjects") -> str:
    """Where the duplicates of a range of content hashes are kept, in the order of ``subject_hash`` or ``unit``."""
    return work.inputs.stage_key("duplicates", f"part-{partition:05d}.{order}.parquet")


def find_duplicates(work: StageWork, partition: int) -> Columns:
    """List the images of one range of content hashes that came before, among those that pass the image filters."""
    store, key = work.dataset, duplicates_key(work, partition)
    if not store.exists(key):  # written last
        parts = [_candidates(work, shard, partition) for shard in range(len(work.inputs.shards))]
        candidates = pa.concat_tables(parts).sort_by(
            [(name, "ascending") for name in ("shard", "offset", "linked", "key")]
        )
        dropped = np.zeros(len(candidates), bool)
        for _, step in work.config.filters.steps("content"):
            dropped |= step.drop(Photos(candidates))
        repeated = candidates.filter(pa.array(dropped))
        write_table(store, duplicates_key(work, partition, "shards"), repeated.sort_by([("unit", "ascending")]))
        write_table(store, key, repeated.sort_by([("subject_hash", "ascending")]))
    return {"partition": np.array([partition])}


def read_duplicates(work: StageWork, span: tuple[int, int]) -> set[tuple[str, int, str]]:
    """(shard, offset, key) of the duplicates among a range of subjects; linked members share their offset."""
    found: set[tuple[str, int, str]] = set()
    for partition in range(work.content_partitions):
        table = read_table(work.dataset, duplicates_key(work, partition), span)
        found.update(zip(*(table[name].to_pylist() for name in ("shard", "offset", "key")), strict=True))
    return found


def read_duplicates_of_shard(work: StageWork, unit: int) -> set[tuple[int, str]]:
    """(offset, key) of the duplicates in one raw shard."""
    found: set[tuple[int, str]] = set()
    for partition in range(work.content_partitions):
        key = duplicates_key(work, partition, "shards")
        table = read_table(work.dataset, key, (unit, unit + 1), by="unit")
        found.update(zip(table["offset"].to_pylist(), table["key"].to_pylist(), strict=True))
    return found


def _candidates(work: StageWork, shard: int, partition: int) -> pa.Table:
    rows = read_table(work.dataset, work.rows[shard].key)
    rows = rows.filter(pc.is_valid(rows["sha256"]))
    place = np.array([int(content[:8], 16) for content in rows["sha256"].to_pylist()], np.int64)
    rows = rows.filter(pa.array(place * work.content_partitions >> 32 == partition))
    for _, step in work.config.filters.steps("image"):
        rows = rows.filter(pa.array(~step.drop(Photos(rows))))
    return rows.select(_COLUMNS).append_column("unit", pa.array([shard] * len(rows), pa.int64()))
