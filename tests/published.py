"""Publish a snapshot by the stages of curation that follow the plan, without Ray."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.config import canonical_json
from lookalike.data.passed_over import PassedOver
from lookalike.storage import read_manifest
from lookalike.storage.snapshot import MANIFEST
from pipelines.curate.finish import FinishWork, add_summaries, finish, groups, join_groups, list_parts, summaries, total
from pipelines.curate.layout import divide, join
from pipelines.curate.materialise import write_unit
from pipelines.curate.materialised import MaterialiseWork
from pipelines.curate.run import draft_manifest, stored_before
from pipelines.curate.work import StageWork


def materialise(
    work: StageWork,
    name: str = "v0001",
    write: Callable[[MaterialiseWork, int], Any] = write_unit,
    parent: int | None = None,
    tainted: frozenset[str] = frozenset(),
) -> MaterialiseWork:
    """Publish version ``name`` of a dataset that is planned; images are stored by ``write``."""
    dataset = work.dataset
    before = None if parent is None else stored_before(dataset, read_manifest(dataset, parent), work.inputs)
    layout = join(work, tables(divide, work, work.partitions))
    done = MaterialiseWork(work, dataset.child(name), layout, before, tainted)
    for unit in range(layout.units):
        write(done, unit)
    summary = total(tables(add_summaries, work, summaries(work)))
    manifest = draft_manifest(int(name.removeprefix("v")), parent, work, summary) | {"taken_down": None}
    objects = PassedOver(len(work.inputs.shards))
    manifest["passed_over"] = {"objects": objects.to_json(), "members": work.members.to_json()}
    written, examples = join_groups(tables(list_parts, done, groups(done)))
    manifest |= written | {"counts": manifest["counts"] | written["counts"]}
    reports = pa.table(finish(FinishWork(done, summary, manifest, examples), 0)).to_pylist()
    manifest["files"] |= {file["name"]: file["sha256"] for file in reports}
    done.version.write(MANIFEST, canonical_json(manifest).encode())
    return done


def tables(task: Callable[[Any, int], dict[str, np.ndarray]], work: Any, units: int) -> Iterator[pa.Table]:
    """Do units of a stage, the last one first, and yield their rows as :func:`pipelines.actors.run_tasks` does."""
    for unit in reversed(range(units)):
        columns = task(work, unit)
        yield pa.table({"unit": np.full(len(next(iter(columns.values()))), unit), **columns})
