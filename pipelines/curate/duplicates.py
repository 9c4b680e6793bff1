"""Exact duplicates: find images with the same bytes across all subjects, and the subjects that share one."""

import numpy as np
import pyarrow as pa

from pipelines.actors import Columns
from pipelines.curate.filters import Photos
from pipelines.curate.rows import LINK_SCHEMA
from pipelines.curate.tables import write_table
from pipelines.curate.work import StageWork


def find_repeated(work: StageWork, partition: int) -> Columns:
    """Write which screened images of a range of content hashes repeat an earlier one, and which subjects share one,
    unless that was done before; return the number of links."""
    key = work.workspace.sharing(partition)
    if not work.dataset.exists(key):  # written last
        rows = work.shuffle("contents").read(partition)
        rows = rows.take(pa.array(np.argsort(rows["first"].to_numpy(), kind="stable")))
        photos = Photos(rows)
        dropped = np.zeros(len(rows), bool)
        for _, step in work.config.filters.steps("content"):
            dropped |= step.drop(photos)
        numbers = rows["number"].to_numpy()[dropped]
        by_subject = {"place": rows["subject_hash"].to_numpy()[dropped], "number": numbers}
        work.shuffle("repeated").write(partition, pa.table(by_subject))
        if work.inputs.models:
            by_shard = {"place": work.place_of_shard(numbers >> 32), "number": numbers}
            work.shuffle("repeated_of_shards").write(partition, pa.table(by_shard))
        write_table(work.dataset, key, _sharing(rows, photos.contents))
    return {"links": np.array([work.read_links(key, LINK_SCHEMA).num_rows]), "capped": np.array([0])}


def _sharing(rows: pa.Table, contents: np.ndarray) -> pa.Table:
    """Return the pairs of subjects that follow each other among the images of the same bytes."""
    subjects, splits = rows["subject_hash"].to_numpy(), rows["split_hash"].to_numpy()
    order = np.lexsort((subjects, contents))
    a, b = order[:-1], order[1:]
    shared = (contents[a] == contents[b]) & (subjects[a] != subjects[b])
    a, b = a[shared], b[shared]
    links = pa.table([subjects[a], splits[a], subjects[b], splits[b]], LINK_SCHEMA)
    return (
        links.group_by(LINK_SCHEMA.names)
        .aggregate([])
        .sort_by([("subject_hash", "ascending"), ("other_hash", "ascending")])
    )
