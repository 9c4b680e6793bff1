"""Plan: decide for a range of subjects, from rows and embeddings, which images are kept and form which triplets."""

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from pipelines.curate.inputs import CAPTION
from pipelines.curate.plan_rows import plan_rows
from pipelines.curate.subject_rows import SubjectRows, read_scores
from pipelines.curate.tables import write_table
from pipelines.curate.work import StageWork


def plan_partition(work: StageWork, partition: int, subjects_in: SubjectRows) -> None:
    """Write the plan of one range of subjects."""
    config, contents = work.config, subjects_in.rows["sha256"].to_pylist()
    scores: dict[str, np.ndarray] = {}
    for name, step in config.filters.scored():
        if step.scorer is not None:
            answers = read_scores(work, work.inputs.models[name], partition)
            scores[name] = np.array([answers.get(content, np.nan) for content in contents], np.float64)
    captions = None
    if config.captioner is not None:
        answers = read_scores(work, work.inputs.models[CAPTION], partition)
        captions = pa.array([answers.get(content) for content in contents], pa.string())
    rows, reasons, vectors = subjects_in.rows, subjects_in.reasons, subjects_in.vectors
    planned = plan_rows(rows, reasons, vectors, subjects_in.repeated, config, scores, captions)
    store = work.dataset
    write_table(store, work.workspace.plan(partition, "images"), planned.images)
    write_table(store, work.workspace.plan(partition, "subjects"), planned.subjects)
    store.write(work.workspace.summary(partition), canonical_json(vars(planned.summary)).encode())
