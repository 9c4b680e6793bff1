"""From a model to what it was made from: rows, of which those with a ``reason`` are links that are missing."""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lookalike import config as configs
from lookalike import registry
from lookalike.bundles.manifest import MANIFEST, parse_manifest
from lookalike.errors import InputError, LookalikeError
from lookalike.registry.inventory import Bundles, bundles_below, snapshots_below
from lookalike.registry.lineage import Run, made_below, run_of_bundle
from lookalike.storage import list_versions, locate_object, open_store, read_manifest
from lookalike.tracking import tracking_uri
from pipelines.curate.snapshot_tables import Snapshot
from pipelines.trace.config import TraceModelConfig
from pipelines.trace.photos import PhotosWork, photos, photos_by_shard

log = logging.getLogger(__name__)

Row = dict[str, Any]
_MOST_BASES = 20  # a chain that is longer refers to itself


def trace_model(config: TraceModelConfig) -> Iterator[Row]:
    """Yield rows from the model down to the pretrained weights that it starts from.

    Each row has ``kind``, ``depth`` (0 for the model, 1 for its base, …) and the values of its kind: ``version``,
    ``scores``, ``decision``, ``bundle``, ``run``, ``snapshot``, ``photos``, ``raw_shard``, ``photo``, ``pretrained``.
    What is not where it was recorded is a row with a ``reason``.

    Raises:
        InputError: no such model, alias or version.
        UnreachableError: MLflow or a store does not answer.
    """
    reference = registry.named(config.model, config.tracking)
    if reference.name is not None:
        yield from _registered(reference, config)
    search = _Search(config)
    uri, sha256 = reference.bundle_uri, reference.bundle_sha256
    seen: set[str] = set()
    for depth in range(_MOST_BASES):
        seen.add(sha256)
        below = yield from _level(search, uri, sha256, depth, config)
        if below is None:
            return
        uri, sha256 = below
        if sha256 in seen:
            break
    yield {"kind": "bundle", "depth": depth + 1, "sha256": sha256, "uri": uri, "reason": "the bases form a circle"}


class _Search:
    """What lies below the stores that the user names; listed when it is first needed."""

    def __init__(self, config: TraceModelConfig) -> None:
        self._stores = config.store

    @cached_property
    def bundles(self) -> Bundles:
        return Bundles(list(bundles_below(self._stores)) if self._stores else [])

    @cached_property
    def runs(self) -> dict[str, Run]:
        """The finished training runs, by the hash of their bundle."""
        records = made_below(self._stores) if self._stores else iter(())
        return {run.bundle_sha256: run for run in records if isinstance(run, Run) and run.bundle_sha256}

    @cached_property
    def snapshots(self) -> dict[str, tuple[str, int]]:
        """Data set and version of each snapshot, by the fingerprint of its manifest."""
        below = snapshots_below(self._stores) if self._stores else iter(())
        return {sha256: (uri, version) for uri, version, sha256 in below}

    def hint(self) -> str:
        return "name the place where it lies now with --store" if not self._stores else "it is not below --store either"


def _registered(reference: registry.ModelReference, config: TraceModelConfig) -> Iterator[Row]:
    """What the registry and the promotion log say about a version."""
    models, name = registry.Registry(tracking_uri(config.tracking)), str(reference.name)
    yield {
        **{"kind": "version", "depth": 0, "name": str(reference), "bundle_sha256": reference.bundle_sha256},
        **{"gate": "refused" if reference.refused else "promoted", "registry": models.uri},
    }
    yield _object("scores", reference.scores_uri, "its evaluation did not record a place")
    yield _object("decision", reference.decision_uri, "it is of an earlier version of this software")
    try:
        entries = models.promotion_log(name)
        about = [] if entries is None else entries.entries()
    except LookalikeError as error:
        yield {"kind": "promotion", "depth": 0, "reason": str(error)}
        return
    for entry in about:
        if entry.bundle_sha256 == reference.bundle_sha256 and entries is not None:
            shown = {"number": entry.number, "time": entry.time, "by": entry.by, "event": entry.kind}
            yield {"kind": "promotion", "depth": 0, "uri": entries.uri_of(entry.number), **shown}


def _object(kind: str, uri: str | None, otherwise: str) -> Row:
    """The row of one object that a version names: a file, or a prefix with ``scores.json``."""
    row: Row = {"kind": kind, "depth": 0, "uri": uri}
    if not uri:
        return {**row, "reason": otherwise}
    store, key = locate_object(uri) if uri.endswith(".json") else (open_store(uri), "scores.json")
    return row if store.exists(key) else {**row, "reason": f"there is no {key} at its place"}


@dataclass(frozen=True)
class _Bundle:
    uri: str
    manifest: dict[str, Any]


def _level(
    search: _Search, uri: str, sha256: str, depth: int, config: TraceModelConfig
) -> Generator[Row, None, tuple[str, str] | None]:
    """Yield the rows of one bundle; returns place and hash of its base, or None at the end of the chain."""
    found = _bundle(search, uri, sha256)
    row: Row = {"kind": "bundle", "depth": depth, "uri": found.uri if found else uri, "sha256": sha256}
    if found is None:
        row["reason"] = f"no bundle with this hash is at its place; {search.hint()}"
    elif found.uri != open_store(uri).uri:
        row["recorded_uri"] = uri
    yield row
    run = run_of_bundle(row["uri"], sha256) or search.runs.get(sha256)
    if run is None:
        yield {"kind": "run", "depth": depth, "reason": f"no training run of this bundle is known; {search.hint()}"}
    else:
        yield _run_row(run, depth)
        yield from _snapshot(search, run, depth, config)
    base = found.manifest["base"] if found else None
    if base is not None:
        return base["uri"], base["sha256"]
    if run is not None and run.base_sha256 is not None:
        return run.base_uri or "", run.base_sha256
    preset = found.manifest["preset"] if found else {}
    yield from _pretrained(preset, depth + 1, started_from_seed=bool(run and run.config.get("from_seed")))
    return None


def _bundle(search: _Search, uri: str, sha256: str) -> _Bundle | None:
    for place in search.bundles.places(sha256, uri or None):
        store = open_store(place)
        return _Bundle(store.uri, parse_manifest(store.read(MANIFEST), store.uri_of(MANIFEST)))
    return None


def _run_row(run: Run, depth: int) -> Row:
    batch = run.config.get("batch_size")
    samples = run.steps * batch if isinstance(run.steps, int) and isinstance(batch, int) else None
    row = {"kind": "run", "depth": depth, "uri": run.uri, "steps": run.steps, "samples": samples}
    return row | {"tracking_run": run.tracking_run, "owner": run.config.get("owner"), "config": run.config}


def _snapshot(search: _Search, run: Run, depth: int, config: TraceModelConfig) -> Iterator[Row]:
    """The snapshot that a run trained on, and its photos; a row with a reason if it is not there, or another one."""
    row: Row = {"kind": "snapshot", "depth": depth, **run.snapshot}
    uri, version, sha256 = run.snapshot["uri"], run.snapshot["version"], run.snapshot["sha256"]
    manifest, reason = _manifest(uri, version, sha256)
    if manifest is None and sha256 in search.snapshots:
        uri, version = search.snapshots[sha256]
        manifest, reason = _manifest(uri, version, sha256)
        row |= {"uri": uri, "version": version, "recorded_uri": run.snapshot["uri"]}
    if manifest is None:
        yield {**row, "reason": f"{reason}; {search.hint()}"}
        return
    inputs = manifest.get("inputs", {})
    yield {**row, "raw": inputs.get("raw"), "counts": manifest.get("counts", {})}
    yield from _photos(Snapshot.of(open_store(uri), version), inputs, depth, config)


def _manifest(uri: str, version: int, sha256: str) -> tuple[dict[str, Any] | None, str]:
    """The manifest of a snapshot, or None and the reason why there is none with this fingerprint."""
    dataset = open_store(uri)
    try:
        if version not in list_versions(dataset):
            return None, f"version {version} is not at {dataset.uri}: it was removed, or the data set was moved"
        manifest = read_manifest(dataset, version)
    except InputError as error:
        return None, str(error)
    if configs.fingerprint(manifest) != sha256:
        return None, f"version {version} at {dataset.uri} is another one than the run read"
    return manifest, ""


def _photos(snapshot: Snapshot, inputs: dict[str, Any], depth: int, config: TraceModelConfig) -> Iterator[Row]:
    try:
        work = PhotosWork.of(snapshot)
        counts = photos_by_shard(work)
        row: Row = {"kind": "photos", "depth": depth, "photos": counts.total(), "raw_shards": len(counts)}
        yield row | {"raw_shards_in": len(inputs.get("shards", {}))}
        if not config.photos:
            return
        raw = open_store(inputs["raw"])
        for shard in sorted(counts):
            yield {"kind": "raw_shard", "depth": depth, "uri": raw.uri_of(shard), "photos": counts[shard]}
        for photo in photos(work):
            shard = photo.pop("shard")
            yield {"kind": "photo", "depth": depth, "raw": raw.uri_of(shard), **photo}
    except (InputError, KeyError) as error:
        yield {"kind": "photos", "depth": depth, "reason": f"the tables of the snapshot cannot be read: {error}"}


def _pretrained(preset: dict[str, Any], depth: int, *, started_from_seed: bool) -> Iterator[Row]:
    """The components that training started from, by the sources that the preset names."""
    parts = {name: part for name, part in preset.items() if isinstance(part, dict) and "source" in part}
    if not parts:
        yield {"kind": "pretrained", "depth": depth, "reason": "the bundle that would name the sources is missing"}
    for name, part in parts.items():
        fresh = started_from_seed and name in ("transformer", "aggregator")
        source = "initialised from the seed" if fresh else part["source"]
        row: Row = {"kind": "pretrained", "depth": depth, "component": name, "source": source}
        yield row | {"revision": part.get("revision"), "licence": part.get("licence")}
