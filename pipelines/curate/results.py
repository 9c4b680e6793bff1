"""Read what stages have written for the stages after them."""

from typing import Any

import pyarrow as pa

from lookalike.documents import decoding
from lookalike.storage import read_object
from pipelines.curate.rows import COMPONENT_SCHEMA
from pipelines.curate.summary import Summary
from pipelines.curate.tables import read_span, read_table
from pipelines.curate.work import StageWork
from pipelines.curate.workspace import DuplicateOrder, PlanTable


def read_duplicates(work: StageWork, span: tuple[int, int], by: DuplicateOrder) -> set[tuple[str, int, str]]:
    """Return (shard, offset, key) of the repeated images of a range of ``subject_hash`` or ``unit`` (a raw shard).

    Linked members share their offset.
    """
    repeated: set[tuple[str, int, str]] = set()
    for partition in range(work.content_partitions):
        table = read_table(work.dataset, work.workspace.duplicates(partition, by), span, by=by)
        repeated.update(zip(*(table[name].to_pylist() for name in ("shard", "offset", "key")), strict=True))
    return repeated


def read_scores(work: StageWork, revision: str, span: tuple[int, int]) -> dict[str, Any]:
    """Return what the model of that revision said of the images of a range of subjects, by content hash."""
    scores: dict[str, Any] = {}
    for info in work.scores[revision]:
        table = read_span(work.dataset, info, span)
        scores.update(zip(table["sha256"].to_pylist(), table["value"].to_pylist(), strict=True))
    return scores


def read_components(work: StageWork) -> dict[str, str]:
    """Return the component of each subject that is linked with another."""
    table = read_links(work, work.workspace.components(), COMPONENT_SCHEMA)
    return dict(zip(table["subject"].to_pylist(), table["component"].to_pylist(), strict=True))


def read_links(work: StageWork, key: str, schema: pa.Schema) -> pa.Table:
    """Return a table of links or components.

    Raises:
        InputError: the table has other columns, so another program has written it.
    """
    table = read_table(work.dataset, key)
    fix = "remove it, and run the same command again"
    with decoding("a table of links", work.dataset.uri_of(key), fix=fix):
        return table.select(schema.names).cast(schema)


def read_plan(work: StageWork, partition: int, table: PlanTable, span: tuple[int, int] | None = None) -> pa.Table:
    """Return the planned images or subjects of a partition, or those of a range of subject hashes."""
    return read_table(work.dataset, work.workspace.plan(partition, table), span)


def read_summary(work: StageWork, partition: int) -> Summary:
    """Return the summary of a partition's plan."""
    key = work.workspace.summary(partition)
    with decoding("a partition's summary", work.dataset.uri_of(key)):
        return Summary.from_json(read_object(work.dataset, key))
