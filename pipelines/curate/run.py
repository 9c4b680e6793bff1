"""Run the stages of a curation, from raw shards to a published snapshot."""

import logging
import os
from dataclasses import dataclass, replace
from typing import Any

from lookalike import config as configs
from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.data.part_lists import FORMAT
from lookalike.documents import decoding
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage import Store, mark_published, open_store, publish, read_manifest, version_store
from lookalike.storage.lease import Lease, hold
from lookalike.storage.snapshot import MANIFEST
from pipelines.actors import run_tasks, run_units
from pipelines.curate import layout
from pipelines.curate.changed import with_recorded_changes
from pipelines.curate.cluster_subjects import cluster_stages
from pipelines.curate.collect import complete
from pipelines.curate.config import CurateConfig, FoundConfig
from pipelines.curate.finish import FinishWork, add_summaries, finish, groups, join_groups, list_parts, summaries, total
from pipelines.curate.index import IndexWork, RawShard, ShardIndexer, index_shard
from pipelines.curate.inputs import Inputs
from pipelines.curate.materialise import UnitWriter, write_unit
from pipelines.curate.materialised import MaterialiseWork, StoredBefore
from pipelines.curate.models import with_pinned_models
from pipelines.curate.raw import RawListing, list_raw, raw_store
from pipelines.curate.removals import take_down
from pipelines.curate.row_stages import rows_of, run_row_stages
from pipelines.curate.summary import Summary
from pipelines.curate.takedown import pin
from pipelines.curate.work import StageWork, indexed
from pipelines.curate.workspace import CLAIM, LEASE
from pipelines.entry import ray_session

log = logging.getLogger(__name__)

RETURNED_MEMORY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
}
"""Variables of workers, with which the memory of a finished unit returns to the machine: allocations of 1 MiB or more
are mapped, and unmapped when they are freed (glibc would raise that threshold to 32 MiB as it meets such allocations).
A private Ray inherits them; a cluster needs them in its environment."""


@dataclass(frozen=True)
class Curated:
    """The newest snapshot after a curation run."""

    dataset: str
    """URI of the dataset."""
    version: int
    new: bool
    """Whether this run published it."""
    manifest: dict[str, Any]
    passed_over: dict[str, Any]
    """As in the manifest, but with the objects that this run has listed, also if it published nothing."""


def curate(config: CurateConfig) -> Curated:
    """Curate the raw shards of ``config.raw`` and publish a snapshot, unless the newest one has the same inputs.

    A run that was killed resumes: the results of finished tasks are kept under ``work/``.

    Raises:
        InputError: there are no raw shards, a shard cannot be read, or there is no usable pair.
        ConfigError: the settings cannot work.
        ConflictError: another run has published this version.
        BusyError: another curation run of the dataset holds its lease.
    """
    for name, value in RETURNED_MEMORY.items():
        os.environ.setdefault(name, value)
    raw, dataset = raw_store(config.raw), open_store(config.dataset)
    listing = list_raw(config.raw, dataset)
    with hold(dataset.child(LEASE)) as lease:
        return _curate(config, raw, dataset, listing, lease)


def _curate(config: CurateConfig, raw: Store, dataset: Store, listing: RawListing, lease: Lease) -> Curated:
    complete(dataset, lease)
    versions = mark_published(dataset)  # of a publisher that was killed
    newest = _newest(dataset, versions)
    config = with_pinned_models(_with_pinned_list(config, dataset, newest))
    inputs = Inputs.of(config, with_recorded_changes(listing.shards, dataset))
    objects = listing.objects.to_json()
    parent = newest["version"] if newest else None
    if newest is not None and newest["inputs"]["fingerprint"] == inputs.fingerprint:
        log.info("nothing new since version %d", parent)
        return Curated(dataset.uri, newest["version"], False, newest, newest["passed_over"] | {"objects": objects})
    with ray_session():
        _index(config, raw, dataset, inputs)
        if config.labels.found is not None:
            _find_subjects(config, inputs, config.labels.found)
        removals = take_down(StageWork.of(config, inputs), versions)
        stage, taken_down = run_row_stages(removals.stage), removals.record
        shared = stage.for_tasks()
        summary = total(run_tasks(add_summaries, shared, summaries(stage), noun="groups of summaries added"))
        _check(summary, stage)
        number = _claim_version(dataset, inputs, (parent or 0) + 1)
        if taken_down is not None:
            taken_down["equal_files"] = summary.dropped["taken_down"] - taken_down["named"]
        manifest = draft_manifest(number, parent, stage, summary)
        manifest["passed_over"] = {"objects": objects, "members": stage.members.to_json()}
        manifest["taken_down"] = taken_down
        lease.check()
        divided = run_tasks(layout.divide, shared, stage.partitions, noun="ranges of subjects divided into units")
        work = MaterialiseWork(
            shared,
            version_store(dataset, number),
            layout.join(stage, divided),
            stored_before(dataset, newest, inputs),
            removals.packs,
        )
        _store_images(work)
        written, examples = join_groups(run_tasks(list_parts, work, groups(work), noun="groups of parts listed"))
        manifest |= written | {"counts": manifest["counts"] | written["counts"]}
        finishing = FinishWork(work, summary, manifest, examples, removals.matched)
        reports = rows_of(run_tasks(finish, finishing, 1, noun="reports"))
    manifest["files"] |= {file["name"]: file["sha256"] for file in reports}
    lease.check()
    _publish(dataset, number, manifest)
    return Curated(dataset.uri, number, True, manifest, manifest["passed_over"])


def _newest(dataset: Store, versions: list[int]) -> dict[str, Any] | None:
    if not versions:
        return None
    manifest = read_manifest(dataset, versions[-1])
    where = version_store(dataset, versions[-1]).uri_of(MANIFEST)
    fix = "restore it, or remove that version and its file in published/, and curate again"
    with decoding("the manifest of a snapshot", where, fix=fix):
        return manifest | {"version": int(manifest["version"]), "inputs": {"fingerprint": None} | manifest["inputs"]}


def _with_pinned_list(config: CurateConfig, dataset: Store, parent: dict[str, Any] | None) -> CurateConfig:
    """Return the configuration with the take-down list replaced by its copy; ``parent`` is a manifest."""
    taken_down = config.filters.taken_down
    if taken_down.list is None:
        if parent is not None and parent.get("taken_down"):
            raise ConfigError(
                f"version {parent['version']} was made with a take-down list, and this run has none:"
                " removed images would come back",
                value=dataset.uri,
                fix="set filters.taken_down.list; to restore all images, use an empty file",
            )
        return config
    pinned = replace(taken_down, list=pin(taken_down.list, dataset, taken_down.max_list_mib))
    return replace(config, filters=replace(config.filters, taken_down=pinned))


def _index(config: CurateConfig, raw: Store, dataset: Store, inputs: Inputs) -> None:
    workspace, present = inputs.workspace, indexed(dataset, inputs.workspace).keys()
    missing = [
        RawShard(number, info)
        for number, (info, shard) in enumerate(zip(inputs.shards, inputs.ids, strict=True))
        if not {workspace.rows(shard), workspace.vectors(shard)} <= present
    ]
    log.info("%d raw shards, %d of them to index", len(inputs.shards), len(missing))
    if not missing:
        return
    work, noun = IndexWork(config, inputs.for_tasks(), raw, dataset), "raw shards indexed"
    if config.embedder == NO_EMBEDDER and config.actors.count:
        rows = rows_of(run_tasks(index_shard, work, missing, noun=noun))
    else:
        rows = rows_of(run_units(ShardIndexer, work, missing, config.actors, noun=noun))
    failed = [row for row in rows if row["error"]]
    if failed:
        names = [inputs.shards[row["shard"]].key for row in failed]
        raise InputError(
            f"{len(failed)} of {len(inputs.shards)} raw shards cannot be read ({failed[0]['error']})",
            value=names[:10],
            fix="repair them and run the same command again: the others are indexed",
        )


def _find_subjects(config: CurateConfig, inputs: Inputs, settings: FoundConfig) -> None:
    indexed_work = StageWork.of(config, inputs, clustered=False)
    groups = list(indexed_work.groups())
    for stage in cluster_stages(indexed_work.dataset, inputs.workspace, settings, config.seed, groups):
        done = rows_of(run_tasks(stage.task, stage.shared, stage.units, noun=stage.noun))
        divided = sum(row.get("parts", 1) > 1 for row in done)
        if divided:
            log.warning("%d cells are so large that they were divided by content hash, and subjects with them", divided)


def stored_before(dataset: Store, parent: dict[str, Any] | None, inputs: Inputs) -> StoredBefore | None:
    """Return the image table of the parent (its manifest), if its images are stored in the form that is wanted."""
    if parent is None or parent.get("format") != FORMAT or parent.get("stored_images") != inputs.stored_images:
        return None
    images = parent["tables"]["images"]
    files = {name: parent["files"][name] for name in images["lists"]}
    return StoredBefore(version_store(dataset, parent["version"]), files, tuple(images["first_hashes"]))


def _store_images(work: MaterialiseWork) -> None:
    config, units, noun = work.stage.config, work.layout.units, "units of images stored"
    latents = config.shards.latents is not None
    done = run_units(UnitWriter, work, units, config.actors, noun=noun) if latents else None
    for _ in done or run_tasks(write_unit, work, units, noun=noun):
        pass


def _check(summary: Summary, stage: StageWork) -> None:
    """Check that the counts add up, and that there are triplets."""
    assert stage.images == summary.images == summary.kept + summary.dropped.total(), "images are lost"
    if summary.triplets == 0:
        dropped = ", ".join(f"{name} {n}" for name, n in summary.dropped.most_common())
        raise InputError(
            f"no usable pair among {summary.images} images of {summary.subjects_in} subjects;"
            f" dropped: {dropped or 'none'}",
            value=stage.raw.uri,
            fix="provide two or more photos of each subject, or relax the filters that dropped most",
        )


def _claim_version(dataset: Store, inputs: Inputs, number: int) -> int:
    """Claim the first version that no run with other inputs has claimed, and return its number.

    A run that was killed gets the same number again, and runs with other inputs never write to its version.
    """
    claim = configs.canonical_json(inputs.fingerprint).encode()
    while True:
        version = version_store(dataset, number)
        try:
            version.create(CLAIM, claim)
        except ConflictError:
            if version.read(CLAIM) != claim:
                number += 1
                continue
        return number


def draft_manifest(version: int, parent: int | None, stage: StageWork, summary: Summary) -> dict[str, Any]:
    """Return the manifest without ``passed_over``, ``taken_down``, and what :func:`join_groups` adds.

    It has no time and no host, so that equal inputs give equal bytes.
    """
    inputs = stage.inputs
    return {
        "format": FORMAT,
        "version": version,
        "parent": parent,
        "config": inputs.config,
        "config_fingerprint": configs.fingerprint(inputs.config),
        "code_version": inputs.code,
        "embedder": inputs.embedder,
        "models": inputs.models,
        "latents": inputs.latents,
        "stored_images": inputs.stored_images,
        "inputs": {
            "raw": stage.raw.uri,
            "fingerprint": inputs.fingerprint,
            "shards": {info.key: {"etag": info.etag, "size": info.size} for info in inputs.shards},
        },
        "counts": {
            "images_in": summary.images,
            "images_kept": summary.kept,
            "dropped": dict(sorted(summary.dropped.items())),
            "subjects_in": summary.subjects_in,
            "subjects": summary.subjects,
            "subjects_bounded": summary.bounded_subjects,
            "keys_bounded": stage.capped,
        },
    }


def _publish(dataset: Store, number: int, manifest: dict[str, Any]) -> None:
    try:
        publish(dataset, number, manifest)
    except ConflictError:  # the same command runs twice, and the other was first with the same bytes
        if read_manifest(dataset, number) != manifest:
            raise
    log.info("published version %d", number)
