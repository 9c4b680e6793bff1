"""Exact duplicates: find images with the same bytes across all subjects, by their content hashes alone."""

import numpy as np
import pyarrow as pa

from pipelines.actors import Columns
from pipelines.curate.filters import Photos
from pipelines.curate.tables import write_table
from pipelines.curate.work import StageWork

_COLUMNS = ("subject_hash", "shard", "offset", "key", "linked", "sha256")


def find_duplicates(work: StageWork, partition: int) -> Columns:
    """Write which screened images of one range of content hashes repeat an earlier one, unless that was done before."""
    store, key = work.dataset, work.workspace.duplicates(partition, "subject_hash")
    if not store.exists(key):  # written last
        parts = []
        for unit in work.inputs.units:
            rows = work.read_screened(unit, partition).select(_COLUMNS)
            parts.append(rows.append_column("unit", pa.array([unit] * len(rows), pa.int64())))
        order = [(name, "ascending") for name in ("shard", "offset", "linked", "key")]
        candidates = pa.concat_tables(parts).sort_by(order)
        dropped = np.zeros(len(candidates), bool)
        for _, step in work.config.filters.steps("content"):
            dropped |= step.drop(Photos(candidates))
        repeated = candidates.filter(pa.array(dropped))
        by_shard = work.workspace.duplicates(partition, "unit")
        write_table(store, by_shard, repeated.sort_by("unit"))
        write_table(store, key, repeated.sort_by("subject_hash"))
    return {"partition": np.array([partition])}
