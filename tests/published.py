"""Publish a snapshot by the stages of curation that follow the plan, without Ray."""

from collections.abc import Callable
from typing import Any

from lookalike.config import canonical_json
from lookalike.data.passed_over import PassedOver
from lookalike.storage import open_store
from lookalike.storage.snapshot import MANIFEST
from pipelines.curate.finish import FinishWork, finish, tables_of
from pipelines.curate.layout import plan_shards
from pipelines.curate.materialise import write_shard
from pipelines.curate.run import draft_manifest
from pipelines.curate.summary import Summary
from pipelines.curate.work import MaterialiseWork, StageWork


def materialise(
    work: StageWork, name: str = "v0001", write: Callable[[MaterialiseWork, int], Any] = write_shard
) -> MaterialiseWork:
    """Write the shards (by ``write``), tables and report of version ``name`` of a dataset that is planned."""
    done = MaterialiseWork(work, open_store(f"{work.config.dataset}/{name}"), tuple(plan_shards(work)))
    for unit in range(len(done.shards)):
        write(done, unit)
    summary = Summary()
    for partition in range(work.partitions):
        summary.add(work.read_summary(partition))
    number = int(name.removeprefix("v"))
    manifest = draft_manifest(number, None, work, summary, list(done.shards)) | {"taken_down": None}
    objects = PassedOver(len(work.inputs.shards))
    manifest["passed_over"] = {"objects": objects.to_json(), "members": work.members.to_json()}
    columns = finish(FinishWork(done, summary, manifest), 0)
    files = [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
    manifest |= {"tables": tables_of(files), "files": {file["name"]: file["sha256"] for file in files}}
    done.version.write(MANIFEST, canonical_json(manifest).encode())
    return done
