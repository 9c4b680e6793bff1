"""Plan: decide for a range of subjects, from rows and embeddings, which images are kept and form which triplets."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.config import canonical_json
from pipelines.actors import Columns
from pipelines.curate.plan_rows import Planned, plan_rows
from pipelines.curate.rows import SUBJECT_SCHEMA, unit_hash
from pipelines.curate.tables import read_part, vectors_of, write_table
from pipelines.curate.work import StageWork


def plan_partition(work: StageWork, partition: int) -> Columns:
    """Write the plan of one range of subjects, unless that was done before."""
    store = work.dataset
    if not store.exists(work.workspace.summary(partition)):
        planned = _planned(work, partition)
        write_table(store, work.workspace.plan(partition, "images"), planned.images)
        write_table(store, work.workspace.plan(partition, "subjects"), planned.subjects)
        store.write(work.workspace.summary(partition), canonical_json(vars(planned.summary)).encode())
    return {"partition": np.array([partition])}


def _planned(work: StageWork, partition: int) -> Planned:
    span, config = work.span(partition), work.config
    rows, reasons = work.read_rows(span)
    repeated = work.read_duplicates(span, "subject_hash")
    places = zip(*(rows[name].to_pylist() for name in ("shard", "offset", "key")), strict=True)
    scores = {}
    for _, step in config.filters.scored():
        if step.scorer is not None:
            answers = work.read_scores(step.scorer.revision, span)
            values = [answers.get(content, np.nan) for content in rows["sha256"].to_pylist()]
            scores[step.scorer.revision] = np.array(values, np.float64)
    captions = None
    if config.captioner is not None:
        answers = work.read_scores(config.captioner.revision, span)
        captions = pa.array([answers.get(content) for content in rows["sha256"].to_pylist()], pa.string())
    planned = plan_rows(
        rows,
        reasons,
        _vectors(work, span, rows["sha256"]),
        np.array([place in repeated for place in places], bool),
        config,
        scores,
        captions,
    )
    if not work.linked:
        return planned
    components, hashes = work.read_components(), planned.subjects["split_hash"].to_pylist()
    for i, subject in enumerate(planned.subjects["subject"].to_pylist()):
        if subject in components:
            hashes[i] = unit_hash("split", config.seed, components[subject])
    column = SUBJECT_SCHEMA.get_field_index("split_hash")
    return replace(planned, subjects=planned.subjects.set_column(column, "split_hash", pa.array(hashes, pa.float64())))


def _vectors(work: StageWork, span: tuple[int, int], contents: pa.ChunkedArray) -> np.ndarray:
    """Return the embedding of each content, zero if it has none: float32 [N, D]."""
    tables = [table for info in work.vectors if len(table := read_part(work.dataset, info, span))]
    if not tables:
        return np.zeros((len(contents), 1), np.float32)
    table = pa.concat_tables(tables)
    vectors = vectors_of(table["vector"])
    place = pc.index_in(contents, value_set=table["sha256"]).combine_chunks()
    found = place.is_valid().to_numpy(zero_copy_only=False)
    vectors_ND = np.zeros((len(contents), vectors.shape[1]), np.float32)
    vectors_ND[found] = vectors[place.drop_null().to_numpy()]
    return vectors_ND
