"""From a photo to what was made of it: snapshots, training runs, models, and the images that these generated."""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lookalike import config as configs
from lookalike import registry
from lookalike.errors import ConfigError, InputError, LookalikeError
from lookalike.registry.lineage import Run, Unreadable, Use, made_below
from lookalike.storage import list_versions, locate_object, open_store, read_at_most, read_manifest
from lookalike.tracking import tracking_uri
from pipelines.curate.trace import entries_in
from pipelines.trace.config import TraceImageConfig

log = logging.getLogger(__name__)

Row = dict[str, Any]
_SHA256 = re.compile(r"[0-9a-f]{8,64}")
_MOST_MIB = 256  # of a photo's file


@dataclass
class _Holder:
    """A snapshot that was searched."""

    uri: str
    version: int
    entries: list[dict[str, Any]]
    """As :func:`pipelines.curate.trace.entries_in` returns them."""

    @property
    def learned(self) -> bool:
        """Whether a training triplet uses the photo."""
        return any(entry["splits"]["train"] for entry in self.entries)


@dataclass
class _Made:
    """What a listing has found: it grows with the jobs, not with their images."""

    runs: list[Run] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


def trace_image(config: TraceImageConfig) -> Iterator[Row]:
    """Yield rows, each with ``kind``: ``image``, ``snapshot``, ``run``, ``version``, ``generation``, ``evaluation``.

    A run's ``learned`` is ``yes`` if training triplets of its snapshot use the photo, ``by its base`` if a model that
    it started from has learned from it, and ``no`` if its snapshot holds the photo, but no training triplet uses it.
    What cannot be read is a row with a ``reason``.

    Raises:
        ConfigError: ``config.image`` is neither a hash nor a file.
        InputError: the digits are the beginning of several photos' hashes.
        UnreachableError: a store does not answer.
    """
    sha256, reference = _identity(config.image)
    yield {"kind": "image", "sha256": sha256}
    made = _made(config)
    for broken in made.unreadable:
        yield {"kind": "run", "uri": broken.uri, "reason": broken.reason}
    holders: dict[str, _Holder] = {}
    yield from _search(config, sha256, made.runs, holders)
    _check_unique(sha256, holders)
    learned: dict[str, str] = {}
    yield from _runs(made.runs, holders, learned)
    yield from _versions(config, learned)
    yield from _uses(made.uses, learned, reference)


def _identity(image: str) -> tuple[str, str | None]:
    """The SHA-256 of a photo, or its beginning, and for a file the fingerprint that generations have of references."""
    if _SHA256.fullmatch(image.lower()):
        return image.lower(), None
    try:
        store, key = locate_object(image)
        data = read_at_most(store, key, _MOST_MIB, "a photo")
    except LookalikeError as error:
        fix = "pass the SHA-256 of a photo, at least its first 8 hexadecimal digits, or a file"
        raise ConfigError(f"neither a content hash nor a file: {error.what}", value=image, fix=fix) from error
    return hashlib.sha256(data).hexdigest(), configs.fingerprint(data.hex())


def _made(config: TraceImageConfig) -> _Made:
    made = _Made()
    for record in made_below(config.store) if config.store else ():
        if isinstance(record, Run):
            made.runs.append(record)
        elif isinstance(record, Use):
            made.uses.append(record)
        else:
            made.unreadable.append(record)
    return made


def _check_unique(sha256: str, holders: dict[str, _Holder]) -> None:
    """Raise InputError if the first digits of a hash are those of several photos."""
    found = {entry["image"]["sha256"] for holder in holders.values() for entry in holder.entries}
    if len(found) > 1:
        what = f"the hashes of {len(found)} photos begin with these digits"
        raise InputError(what, value=sha256, fix=f"pass more digits, as of {min(found)}")


def _search(config: TraceImageConfig, sha256: str, runs: list[Run], holders: dict[str, _Holder]) -> Iterator[Row]:
    """Search all versions of the named data sets, and those that runs have read; fill ``holders`` by fingerprint."""
    wanted: dict[tuple[str, int], str | None] = {}
    for place in config.dataset:
        dataset = open_store(place)
        try:
            versions = list_versions(dataset)
        except InputError as error:
            yield {"kind": "snapshot", "uri": dataset.uri, "reason": str(error)}
            continue
        if not versions:
            yield {"kind": "snapshot", "uri": dataset.uri, "reason": "the data set has no complete snapshot"}
        wanted |= {(dataset.uri, version): None for version in versions}
    yield from _searched(sha256, wanted, holders)
    of_runs = {run.snapshot["sha256"]: run.snapshot for run in runs if run.snapshot["sha256"] not in holders}
    yield from _searched(
        sha256, {(open_store(s["uri"]).uri, s["version"]): fingerprint for fingerprint, s in of_runs.items()}, holders
    )


def _searched(sha256: str, wanted: dict[tuple[str, int], str | None], holders: dict[str, _Holder]) -> Iterator[Row]:
    for number, ((uri, version), expected) in enumerate(sorted(wanted.items()), start=1):
        log.info("snapshot %d of %d: version %d of %s", number, len(wanted), version, uri)
        row: Row = {"kind": "snapshot", "uri": uri, "version": version}
        dataset = open_store(uri)
        try:
            fingerprint = configs.fingerprint(read_manifest(dataset, version))
            if expected not in (None, fingerprint):
                yield {**row, "sha256": expected, "reason": "another snapshot is at its place than the run has read"}
                continue
            entries = entries_in(dataset, version, sha256)
        except InputError as error:
            fix = "name its place now with --dataset"
            yield {**row, "sha256": expected, "reason": f"it cannot be searched: {error.what}; {fix}"}
            continue
        holders[fingerprint] = _Holder(uri, version, entries)
        if entries:
            shown = [{**entry["image"], "triplets": entry["splits"]} for entry in entries]
            yield {**row, "sha256": fingerprint, "images": shown}


def _runs(runs: list[Run], holders: dict[str, _Holder], learned: dict[str, str]) -> Iterator[Row]:
    """Rows of the runs that have to do with the photo; fills ``learned``: how a bundle learned from it, by its hash."""
    state: dict[str, str] = {}
    for run in runs:
        holder = holders.get(run.snapshot["sha256"])
        if holder is not None and holder.entries:
            state[run.uri] = "yes" if holder.learned else "no"
    changed = True
    while changed:  # a run whose base has learned; bases come before what was trained on them
        changed = False
        for run in runs:
            how = state.get(run.uri, "no")
            if how == "no" and run.base_sha256 in learned:
                state[run.uri] = how = "by its base"
            if how != "no" and run.bundle_sha256 and run.bundle_sha256 not in learned:
                learned[run.bundle_sha256], changed = how, True
    for run in runs:
        if run.uri in state:
            row: Row = {"kind": "run", "uri": run.uri, "learned": state[run.uri], "owner": run.config.get("owner")}
            yield row | {"bundle_sha256": run.bundle_sha256, "steps": run.steps, "tracking_run": run.tracking_run}


def _versions(config: TraceImageConfig, learned: dict[str, str]) -> Iterator[Row]:
    if not learned:
        return
    try:
        models = registry.Registry(tracking_uri(config.tracking))
        for sha256, how in learned.items():
            for version in models.versions_everywhere(sha256):
                row: Row = {"kind": "version", "name": str(version), "learned": how, "bundle_sha256": sha256}
                yield row | {"champion": _is_champion(models, version)}
    except LookalikeError as error:
        yield {"kind": "version", "reason": f"versions of models cannot be looked up: {error}"}


def _is_champion(models: registry.Registry, version: registry.ModelReference) -> bool | None:
    """Whether the version is its model's champion; None if registry and log contradict each other."""
    try:
        now = registry.standing(models, str(version.name))
    except InputError as error:
        log.warning("%s", error)
        return None
    return now is not None and now.champion is not None and now.champion.version == version.version


def _uses(uses: list[Use], learned: dict[str, str], reference: str | None) -> Iterator[Row]:
    """Rows of the generations and evaluations whose images were made by models that have learned from the photo, or
    with the photo as a reference."""
    for use in uses:
        bundles = [sha256 for sha256 in use.bundles if sha256 in learned]
        is_reference = reference is not None and reference in use.references
        if bundles or is_reference:
            row: Row = {"kind": use.kind, "uri": use.uri, "bundles": bundles, "as_reference": is_reference}
            yield row | {"images": _images(use), "finished": use.finished}


def _images(use: Use) -> int:
    """How many images lie below the output now."""
    return sum(1 for _ in open_store(use.uri).list("images/"))
