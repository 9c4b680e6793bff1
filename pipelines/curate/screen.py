"""Screen: judge each image once by the filters that see one image, and write the reasons beside the image rows."""

import numpy as np
import pyarrow as pa

from pipelines.actors import Columns
from pipelines.curate.filters import Photos
from pipelines.curate.rows import REASON_SCHEMA
from pipelines.curate.tables import read_table, write_table
from pipelines.curate.work import StageWork


def screen_shard(work: StageWork, unit: int) -> Columns:
    """Write the reason for each image of one raw shard, unless that was done before."""
    store, key = work.dataset, work.workspace.reasons(unit)
    if not store.exists(key):
        rows = read_table(store, work.rows[unit].key)
        reasons = np.full(len(rows), "", object)  # the first filter that drops an image is its reason
        for name, step in work.config.filters.steps("image"):
            reasons[step.drop(Photos(rows)) & (reasons == "")] = name
        columns = [rows["subject_hash"], pa.array(reasons, pa.string())]
        write_table(store, key, pa.table(columns, REASON_SCHEMA))
    return {"shard": np.array([unit])}
