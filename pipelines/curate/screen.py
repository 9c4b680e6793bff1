"""Screen: judge images one by one, from their rows alone."""

import numpy as np
import pyarrow as pa

from pipelines.curate.filters import FiltersConfig, Photos


def screen(rows: pa.Table, filters: FiltersConfig) -> np.ndarray:
    """Return the first filter of scope ``image`` that drops each image, object [N]; empty if none does.

    ``rows`` has the columns of :data:`pipelines.curate.rows.IMAGE_SCHEMA`.
    """
    reasons = np.full(len(rows), "", object)
    for name, step in filters.steps("image"):
        reasons[step.drop(Photos(rows)) & (reasons == "")] = name
    return reasons
