"""Publish a snapshot by the stages of curation that follow the plan, without Ray."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from lookalike.data.passed_over import PassedOver
from lookalike.storage import open_store
from pipelines.curate.finish import FinishWork, finish
from pipelines.curate.layout import plan_shards
from pipelines.curate.materialise import write_shard
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
    split = Counter({plan.split: plan.triplets for plan in done.shards})
    counts = {
        "images_in": summary.images, "images_kept": summary.kept, "dropped": dict(summary.dropped),
        "subjects": summary.subjects, "subjects_bounded": summary.bounded_subjects,
        "subjects_in": summary.subjects_in, "triplets": {"train": split["train"], "validation": split["validation"]},
    }  # fmt: skip
    manifest = {"version": 1, "parent": None, "counts": counts, "taken_down": None}
    manifest["passed_over"] = {
        "objects": PassedOver(len(work.inputs.shards)).to_json(),
        "members": work.members.to_json(),
    }
    finish(FinishWork(done, summary, manifest), 0)
    return done
