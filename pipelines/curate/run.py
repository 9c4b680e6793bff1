"""Run the stages of a curation, from raw shards to a published snapshot."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike import config as configs
from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.documents import decoding
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage import Store, list_versions, open_store, publish, read_manifest, version_store
from lookalike.storage.lease import Lease, hold
from lookalike.storage.snapshot import MANIFEST
from pipelines.actors import Columns, run_tasks, run_units
from pipelines.curate.changed import with_recorded_changes
from pipelines.curate.cluster_subjects import ClusterWork, assign_cells, find_centroids, group_cell, label_shard
from pipelines.curate.config import CurateConfig
from pipelines.curate.duplicates import find_duplicates
from pipelines.curate.finish import FinishWork, finish
from pipelines.curate.index import IndexWork, ShardIndexer, index_shard
from pipelines.curate.inputs import Inputs
from pipelines.curate.layout import plan_shards
from pipelines.curate.materialise import ShardWriter, write_shard
from pipelines.curate.plan import plan_partition
from pipelines.curate.raw import RawListing, list_raw, raw_store
from pipelines.curate.removals import take_down
from pipelines.curate.results import read_summary
from pipelines.curate.score import ShardScorer, scored
from pipelines.curate.screen import screen_shard
from pipelines.curate.subject_links import find_links, join_links, link_units
from pipelines.curate.summary import Summary
from pipelines.curate.takedown import pin
from pipelines.curate.work import MaterialiseWork, ShardPlan, StageWork, indexed
from pipelines.curate.workspace import CLAIM, LEASE
from pipelines.entry import ray_session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curated:
    """The newest snapshot after a curation run."""

    dataset: str
    """URI of the dataset."""
    version: int
    """Version of the snapshot."""
    new: bool
    """Whether this run published it."""
    manifest: dict[str, Any]
    """Its manifest."""
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
    raw, dataset = raw_store(config.raw), open_store(config.dataset)
    listing = list_raw(config.raw, dataset)
    with hold(dataset.child(LEASE)) as lease:
        return _curate(config, raw, dataset, listing, lease)


def _curate(config: CurateConfig, raw: Store, dataset: Store, listing: RawListing, lease: Lease) -> Curated:
    versions = list_versions(dataset)
    newest = _newest(dataset, versions)
    config = _with_pinned_list(config, dataset, newest)
    inputs = Inputs.of(config, with_recorded_changes(listing.shards, dataset))
    objects = listing.objects.to_json()
    parent = newest["version"] if newest else None
    if newest is not None and newest["inputs"]["fingerprint"] == inputs.fingerprint:
        log.info("nothing new since version %d", parent)
        return Curated(dataset.uri, newest["version"], False, newest, newest["passed_over"] | {"objects": objects})
    with ray_session():
        _index(config, raw, dataset, inputs)
        _find_subjects(config, inputs)
        stage = StageWork.of(config, inputs)
        stage, taken_down, matched = take_down(stage, versions)
        _finish_all(run_tasks(screen_shard, stage, len(stage.rows), noun="raw shards screened"))
        comparisons = stage.content_partitions + link_units(stage)
        links = run_tasks(_compare, stage, comparisons, noun="ranges compared across subjects")
        if sum(sum(table["links"].to_pylist()) for table in links):
            _finish_all(run_tasks(join_links, stage, 1, noun="sets of linked subjects"))
            stage = replace(stage, linked=True)
        stage = _score(stage)
        _finish_all(run_tasks(plan_partition, stage, stage.partitions, noun="ranges of subjects planned"))
        summary = Summary()
        for partition in range(stage.partitions):
            summary.add(read_summary(stage, partition))
        _check(summary, stage)
        number = _claim_version(dataset, inputs, (parent or 0) + 1)
        plans = plan_shards(stage)
        counts = _counts(summary, plans)
        if taken_down is not None:
            taken_down["equal_files"] = summary.dropped["taken_down"] - taken_down["named"]
        passed_over = {"objects": objects, "members": stage.members.to_json()}
        lease.check()
        work = MaterialiseWork(stage, version_store(dataset, number), tuple(plans))
        files = _hashes(_write_shards(work))
        title = f"Curation report, version {number}"
        last = FinishWork(work, summary, counts, taken_down, parent, title, passed_over, matched)
        files |= _hashes(run_tasks(finish, last, 1, noun="reports"))
    manifest = _manifest(number, parent, config, inputs, counts, files)
    manifest |= {"taken_down": taken_down, "latents": inputs.latents, "passed_over": passed_over}
    lease.check()
    _publish(dataset, number, manifest)
    return Curated(dataset.uri, number, True, manifest, passed_over)


def _newest(dataset: Store, versions: list[int]) -> dict[str, Any] | None:
    """Return the manifest of the newest snapshot, if there is one."""
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
    """Index the raw shards that are not indexed yet."""
    workspace, present = inputs.workspace, indexed(dataset).keys()
    missing = tuple(i for i in inputs.units if not {workspace.rows(i), workspace.vectors(i)} <= present)
    log.info("%d raw shards, %d of them to index", len(inputs.shards), len(missing))
    if not missing:
        return
    work = IndexWork(raw.uri, dataset.uri, inputs, missing, config)
    noun = "raw shards indexed"
    if config.embedder == NO_EMBEDDER and config.actors.count:
        tables = list(run_tasks(index_shard, work, len(missing), noun=noun))
    else:
        tables = list(run_units(ShardIndexer, work, len(missing), config.actors, noun=noun))
    failed = [row for table in tables for row in table.to_pylist() if row["error"]]
    if failed:
        names = [inputs.shards[row["shard"]].key for row in failed]
        raise InputError(
            f"{len(failed)} of {len(inputs.shards)} raw shards cannot be read ({failed[0]['error']})",
            value=names[:10],
            fix="repair them and run the same command again: the others are indexed",
        )


def _find_subjects(config: CurateConfig, inputs: Inputs) -> None:
    """Group the photos without a subject, if ``labels.found`` is set."""
    if config.labels.found is None:
        return
    work = ClusterWork.of(config, inputs)
    shards = len(inputs.shards)
    _finish_all(run_tasks(find_centroids, work, 1, noun="sets of centroids"))
    _finish_all(run_tasks(assign_cells, work, shards, noun="raw shards assigned to cells"))
    _finish_all(run_tasks(group_cell, work, work.cells, noun="cells grouped"))
    _finish_all(run_tasks(label_shard, work, shards, noun="raw shards labelled"))


def _compare(stage: StageWork, unit: int) -> Columns:
    """Do a unit of :func:`find_duplicates`, which come first, or of :func:`find_links`; neither needs the other."""
    if unit >= stage.content_partitions:
        return find_links(stage, unit - stage.content_partitions)
    find_duplicates(stage, unit)
    return {"links": np.array([0])}


def _score(stage: StageWork) -> StageWork:
    """Score and caption images by models, if any are configured."""
    if not stage.inputs.models:
        return stage
    units, actors = len(stage.inputs.shards), stage.config.actors
    tables = run_units(ShardScorer, stage, units, actors, noun="raw shards scored")
    shown = sum(sum(table["shown"].to_pylist()) for table in tables)
    log.info("models were shown %d new images", shown)
    return replace(stage, scores=scored(stage))


def _write_shards(work: MaterialiseWork) -> Iterator[pa.Table]:
    config, shards, noun = work.stage.config, len(work.shards), "triplet shards"
    if config.shards.latents is None:
        return run_tasks(write_shard, work, shards, noun=noun)
    return run_units(ShardWriter, work, shards, config.actors, noun=noun)


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
    while True:
        try:
            version_store(dataset, number).create(CLAIM, configs.canonical_json(inputs.fingerprint).encode())
        except ConflictError:
            claim = version_store(dataset, number).read(CLAIM)
            if claim != configs.canonical_json(inputs.fingerprint).encode():
                number += 1
                continue
        return number


def _counts(summary: Summary, plans: list[ShardPlan]) -> dict[str, Any]:
    return {
        "images_in": summary.images,
        "images_kept": summary.kept,
        "dropped": dict(sorted(summary.dropped.items())),
        "subjects_in": summary.subjects_in,
        "subjects": summary.subjects,
        "subjects_bounded": summary.bounded_subjects,
        "triplets": {
            split: sum(plan.triplets for plan in plans if plan.split == split) for split in ("train", "validation")
        },
    }


def _manifest(
    number: int,
    parent: int | None,
    config: CurateConfig,
    inputs: Inputs,
    counts: dict[str, Any],
    files: dict[str, str],
) -> dict[str, Any]:
    """Return the manifest. It has no time and no host, so that equal inputs give equal bytes."""
    return {
        "version": number,
        "parent": parent,
        "config": inputs.config,
        "config_fingerprint": configs.fingerprint(inputs.config),
        "code_version": inputs.code,
        "embedder": inputs.embedder,
        "models": inputs.models,
        "inputs": {
            "raw": raw_store(config.raw).uri,
            "fingerprint": inputs.fingerprint,
            "shards": {info.key: {"etag": info.etag, "size": info.size} for info in inputs.shards},
        },
        "counts": counts,
        "files": dict(sorted(files.items())),
    }


def _publish(dataset: Store, number: int, manifest: dict[str, Any]) -> None:
    try:
        publish(dataset, number, manifest)
    except ConflictError:  # the same command runs twice, and the other was first with the same bytes
        if read_manifest(dataset, number) != manifest:
            raise
    log.info("published version %d", number)


def _hashes(tables: Iterable[pa.Table]) -> dict[str, str]:
    return {row["name"]: row["sha256"] for table in tables for row in table.to_pylist()}


def _finish_all(tables: Iterable[pa.Table]) -> None:
    for _ in tables:
        pass
