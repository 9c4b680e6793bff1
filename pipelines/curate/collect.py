"""Collect: remove what no snapshot and no next curation run of a dataset needs.

Removed are, if they are older than the grace period:

- results of stages, below ``work/<stage>/<identity of its inputs>/``: all of these objects or none, since a run that
  was killed resumes by what exists;
- index results of raw shards that the newest version does not list, or that its settings and models do not read, and
  answers of models about raw shards that it does not list;
- take-down lists that no manifest names;
- packs below ``shards/`` that no version lists.

Objects that are removed together are first recorded in ``work/collection.json``: a collection that was killed is
completed by the next one, or by the next curation run.
"""

import io
import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

import pyarrow.parquet as pq
from annotated_types import Ge, Le

from lookalike.config import canonical_json
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import (
    ObjectInfo,
    Store,
    delete_all,
    list_versions,
    open_store,
    read_manifest,
    read_members,
    version_store,
    withdraw,
)
from lookalike.storage.lease import Lease, hold
from lookalike.storage.snapshot import MANIFEST, read_listed
from lookalike.values import configuration
from pipelines.curate.inputs import Inputs
from pipelines.curate.workspace import (
    CHANGED,
    COLLECTION,
    LEASE,
    OF_ANSWERS,
    OF_INDEX,
    OF_STAGE,
    OF_TAKE_DOWN_LISTS,
    PACK,
    PACKS_PREFIX,
    WORK_PREFIX,
    take_down_list,
)

log = logging.getLogger(__name__)

_WRITES_PACKS = ("materialise",)  # stages whose results name the packs that they have written
_VERSION = re.compile(r"v(\d{4,})/")
_FORMATS = (1, 2)
_BETWEEN_CHECKS = 1_000  # objects that are removed between two checks of the lease
_RESTORE = "restore it from a copy; or remove that version with its file in published/, if nothing uses it"


@configuration()
class CollectConfig:
    """Settings of a collection."""

    dataset: str
    """URI of the prefix of the snapshots and of ``work/``."""
    version: Annotated[int, Ge(1), Le(10**9)] | None = None
    """Also remove this version, which is not the newest. Not known here, so not checked: whether a training run reads
    it, and whether a registered model was trained on it and its lineage should stay readable."""
    grace_hours: Annotated[float, Ge(0), Le(87_600)] = 24.0
    """Objects that were written in the last hours stay: a killed curation run can resume for this time."""
    dry_run: bool = False
    """Show what would be removed, and remove nothing."""


@dataclass
class Tally:
    """Objects and their bytes, by kind: ``shards``, ``work/plan`` and so on."""

    objects: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

    def add(self, info: ObjectInfo) -> None:
        """Count one object."""
        kind = "/".join(info.key.split("/")[: 2 if info.key.startswith(WORK_PREFIX) else 1])
        self.objects[kind] += 1
        self.sizes[kind] += info.size


@dataclass(frozen=True)
class Collected:
    """What a collection has removed, or would remove, and what it has kept."""

    removed: Tally
    kept: Tally


def collect(config: CollectConfig) -> Collected:
    """Remove what is not needed below ``work/`` and ``shards/`` of a dataset.

    Raises:
        InputError: the dataset has no version, its lists of packs cannot be read, or the version cannot be removed;
            then nothing is removed.
        BusyError: a curation run or another collection holds the lease of the dataset.
    """
    dataset = open_store(config.dataset)
    _versions(dataset)  # first, so that a lease is written to datasets only
    with hold(dataset.child(LEASE)) as lease:
        if not config.dry_run:
            complete(dataset, lease)
        versions = _versions(dataset)
        if config.version is not None:
            _check_removable(dataset, config.version, versions)
            versions.remove(config.version)
        plan = _Plan.of(dataset, versions, time.time() - config.grace_hours * 3600)
        if config.version is not None:
            prefix = version_store(dataset, config.version).prefix_in(dataset)
            assert prefix is not None
            plan.remove_prefix(prefix, dataset.list(prefix))
        if not config.dry_run:
            _remove(dataset, lease, plan)
        return Collected(plan.removed, plan.kept)


def complete(dataset: Store, lease: Lease) -> None:
    """Complete a collection that was killed. A curation run calls it first, since its results may be half removed."""
    if not dataset.exists(COLLECTION):
        return
    prefixes = read_members(dataset, COLLECTION, {"prefixes": list[str]}, fix="remove it, and collect again")[
        "prefixes"
    ]
    log.info("completing a collection that was killed: %d prefixes", len(prefixes))
    for prefix in prefixes:
        if (version := _VERSION.fullmatch(prefix)) is not None:
            withdraw(dataset, int(version[1]))
        elif not OF_STAGE.fullmatch(f"{prefix}x"):
            raise InputError(
                "the record of a collection names a prefix that no collection removes",
                value=prefix,
                fix=f"remove {dataset.uri_of(COLLECTION)}",
            )
        _delete(dataset, lease, (info.key for info in dataset.list(prefix)))
    dataset.delete(COLLECTION)


@dataclass
class _Plan:
    """What is removed."""

    prefixes: list[str] = field(default_factory=list)
    """Prefixes whose objects are removed together."""
    grouped: list[str] = field(default_factory=list)
    """The keys below them."""
    single: list[str] = field(default_factory=list)
    """Other keys; each of them can be removed alone."""
    removed: Tally = field(default_factory=Tally)
    kept: Tally = field(default_factory=Tally)

    @classmethod
    def of(cls, dataset: Store, versions: list[int], before: float) -> "_Plan":
        """Plan the removal of what none of ``versions`` needs, and what was written ``before`` (s since 1970)."""
        plan, manifests = cls(), [_manifest(dataset, version) for version in versions]
        published = {manifest["inputs"]["fingerprint"][:16] for manifest in manifests}
        resumable = plan._work(dataset, manifests, published, before)
        packs = [info for info in dataset.list(PACKS_PREFIX) if PACK.fullmatch(info.key)]
        needed = _packs(dataset, versions, manifests) if packs else set()
        for info in packs:  # a run that can resume needs the packs that it has written
            plan._judge(info, keep=info.key in needed or info.modified >= before or resumable)
        return plan

    def _work(self, dataset: Store, manifests: list[dict[str, Any]], published: set[str], before: float) -> bool:
        """Plan the objects below ``work/``; return whether results of a run that is not published are kept."""
        where = version_store(dataset, manifests[-1]["version"]).uri_of(MANIFEST)
        with decoding("the manifest of a snapshot", where, fix=_RESTORE):
            inputs = Inputs.of_manifest(manifests[-1])
            workspace, ids = inputs.index_workspace, set(inputs.ids)
            results = (workspace.rows, workspace.vectors, workspace.unpacked)
            index = {key_of(shard) for shard in ids for key_of in results}
            records = [manifest["taken_down"] for manifest in manifests if manifest.get("taken_down")]
            lists = {take_down_list(record[name]) for record in records for name in ("list", "widened")}
        stages: dict[str, list[ObjectInfo]] = defaultdict(list)
        for info in dataset.list(WORK_PREFIX):
            young = info.modified >= before
            if (answers := OF_ANSWERS.fullmatch(info.key)) is not None:
                self._judge(info, keep=young or answers[1] in ids)
            elif OF_INDEX.fullmatch(info.key):
                self._judge(info, keep=young or info.key in index)
            elif OF_TAKE_DOWN_LISTS.fullmatch(info.key):
                self._judge(info, keep=young or info.key in lists)
            elif OF_STAGE.fullmatch(info.key):
                stages["/".join(info.key.split("/")[:3]) + "/"].append(info)
            elif not info.key.startswith((f"{LEASE}/", f"{CHANGED}/")) and info.key != COLLECTION:
                self._judge(info, keep=True)
        resumable = False
        for prefix, infos in stages.items():
            if max(info.modified for info in infos) >= before:
                _, stage, identity, _ = prefix.split("/")
                resumable |= stage in _WRITES_PACKS and identity not in published
                for info in infos:
                    self._judge(info, keep=True)
            else:
                self.remove_prefix(prefix, infos)
        return resumable

    def remove_prefix(self, prefix: str, infos: Iterable[ObjectInfo]) -> None:
        """Plan to remove all objects below a prefix."""
        self.prefixes.append(prefix)
        for info in infos:
            self.grouped.append(info.key)
            self.removed.add(info)

    def _judge(self, info: ObjectInfo, *, keep: bool) -> None:
        (self.kept if keep else self.removed).add(info)
        if not keep:
            self.single.append(info.key)


def _versions(dataset: Store) -> list[int]:
    versions = list_versions(dataset)
    if not versions:
        raise InputError(
            "the dataset has no complete snapshot, which would say what is needed",
            value=dataset.uri,
            fix="run jobs/curate.py run first; if the dataset is not used any more, remove its prefix",
        )
    return versions


def _check_removable(dataset: Store, version: int, versions: list[int]) -> None:
    if version not in versions:
        raise InputError(
            f"version {version} does not exist or is not complete",
            value=dataset.uri,
            fix=f"choose from {[f'{each}' for each in versions[:-1]]}",
        )
    if version == versions[-1]:
        raise InputError(
            f"version {version} is the newest: the next run needs it, and its number would be given to other data",
            value=dataset.uri,
            fix="publish another version first",
        )


def _manifest(dataset: Store, version: int) -> dict[str, Any]:
    manifest = read_manifest(dataset, version)
    where = version_store(dataset, version).uri_of(MANIFEST)
    with decoding("the manifest of a snapshot", where, fix=_RESTORE):
        manifest["version"] = int(manifest["version"])
        _ = manifest["inputs"]["fingerprint"][:16]
    if manifest.get("format", 1) not in _FORMATS:
        raise InputError(
            f"a version has format {manifest['format']}, and this version of lookalike knows formats {list(_FORMATS)}",
            value=where,
            fix="use the version of lookalike that made it",
        )
    return manifest


def _packs(dataset: Store, versions: list[int], manifests: list[dict[str, Any]]) -> set[str]:
    """Return the keys of all packs that the versions list. Raises InputError if a list cannot be read."""
    needed: set[str] = set()
    for number, manifest in zip(versions, manifests, strict=True):
        if manifest.get("format", 1) == 1:  # its shards are below its own prefix
            continue
        version = version_store(dataset, number)
        with decoding("the manifest of a snapshot", version.uri_of(MANIFEST), fix=_RESTORE):
            names = [str(name) for name in manifest["tables"]["shards"]["lists"]]
        for name in names:
            data = read_listed(version, name, manifest)
            with decoding("a list of the packs of a snapshot", version.uri_of(name), fix=_RESTORE):
                needed.update(pq.read_table(io.BytesIO(data), columns=["name"])["name"].to_pylist())
    return needed


def _remove(dataset: Store, lease: Lease, plan: _Plan) -> None:
    lease.check()
    if plan.prefixes:
        dataset.write(COLLECTION, canonical_json({"prefixes": plan.prefixes}).encode())
        for prefix in plan.prefixes:
            if (version := _VERSION.fullmatch(prefix)) is not None:
                withdraw(dataset, int(version[1]))
        _delete(dataset, lease, plan.grouped)
        dataset.delete(COLLECTION)
    _delete(dataset, lease, plan.single)


def _delete(dataset: Store, lease: Lease, keys: Iterable[str]) -> None:
    for chunk in _chunks(iter(keys)):
        lease.check()
        delete_all(dataset, chunk)


def _chunks(keys: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(keys, _BETWEEN_CHECKS)):
        yield chunk


def render_collected(collected: Collected, *, dry_run: bool) -> str:
    """Return a line for each kind of object, and one with the sums, as text."""
    removed, kept = collected.removed, collected.kept
    kinds = sorted({*removed.objects, *kept.objects})
    lines = [f"{'':24}{'removed':>12}{'MiB':>12}{'kept':>12}{'MiB':>12}"]
    for kind in kinds:
        numbers = (f"{tally.objects[kind]:12}{tally.sizes[kind] / 2**20:12.1f}" for tally in (removed, kept))
        lines.append(f"{kind:24}{''.join(numbers)}")
    verb = "would remove" if dry_run else "removed"
    lines.append(f"{verb} {removed.objects.total()} objects, {removed.sizes.total() / 2**20:.1f} MiB")
    return "\n".join(lines)
