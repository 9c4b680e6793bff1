"""Compare two snapshots: settings, raw shards, images by reason, triplets. One subject is in memory at a time."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, repeat
from typing import Any

from lookalike.data import triplets
from lookalike.data.parts import Kind
from lookalike.documents import decoding
from lookalike.storage import Store, open_store, read_manifest, version_store
from lookalike.values import configuration
from pipelines.curate.rows import subject_hash
from pipelines.curate.tables import open_files

_EXAMPLES = 3  # keys of images shown for each change of fate
Rows = list[dict[str, Any]]
Subjects = Iterator[tuple[tuple[int, str], Rows]]  # ((hash, name) of a subject, its rows), in the order of hashes
KEPT, ABSENT = "kept", "not there"  # values of Fate beside the reasons


@configuration()
class DiffConfig:
    """Settings of a comparison of two snapshots of a dataset."""

    before: int
    """Number of the older snapshot."""
    after: int
    """Number of the newer snapshot."""
    dataset: str
    """URI of the prefix of the snapshots."""
    json: bool = False
    """Print JSON."""


@dataclass
class Fate:
    """Images with the same state before and the same state after."""

    before: str
    """``kept``, a reason, or ``not there``; so is ``after``."""
    after: str
    images: int = 0
    examples: list[str] = field(default_factory=list)
    """Keys of a few of them."""
    why: list[str] = field(default_factory=list)
    """Changed settings, or raw shards, that explain the change."""


@dataclass
class Difference:
    """The differences of two snapshots. :func:`dataclasses.asdict` gives its JSON."""

    before: int
    """Version of the older snapshot; ``after`` is that of the newer one."""
    after: int
    settings: dict[str, list[Any]]
    """[value before, value after] by dotted key, including ``code_version`` and ``embedder``."""
    shards: dict[str, list[str]]
    """Raw shards that are ``new``, ``gone`` or ``changed``."""
    images: list[Fate]
    """Changed images, grouped by their states, the largest group first."""
    unchanged: int
    """Number of images with the same state in both."""
    triplets: dict[str, dict[str, int]]
    """Numbers of triplets that were ``added``, ``removed`` and ``kept``, by split."""
    moved: int
    """Number of subjects that changed their split."""


def diff(config: DiffConfig) -> Difference:
    """Compare two snapshots. Raises InputError if a version does not exist."""
    dataset, versions = open_store(config.dataset), (config.before, config.after)
    with decoding("two whole snapshots", dataset.uri, fix="restore the versions, or compare others"):
        old, new = (read_manifest(dataset, version) for version in versions)
        settings = _settings(old, new)
        shards = _shards(old["inputs"]["shards"], new["inputs"]["shards"])
        stores = [version_store(dataset, version) for version in versions]
        fates, unchanged = _images(*stores)
        for fate in fates:
            fate.why = _why(fate, settings, shards)
        changed, moved = _triplets(*stores)
    return Difference(*versions, settings, shards, fates, unchanged, changed, moved)


def render_diff(changes: Difference) -> str:
    """Return the differences as text for a terminal."""
    lines = [f"v{changes.before:04d} -> v{changes.after:04d}", "", "settings"]
    lines += [f"  {key}: {old} -> {new}" for key, (old, new) in changes.settings.items()] or ["  the same"]
    lines += ["", "raw shards"]
    for state, keys in changes.shards.items():
        if keys:
            lines.append(f"  {len(keys)} {state}: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}")
    if not any(changes.shards.values()):
        lines.append("  the same")
    lines += ["", f"images ({changes.unchanged} unchanged)"]
    for fate in changes.images:
        why = f"   ({'; '.join(fate.why)})" if fate.why else ""
        lines.append(f"  {fate.images:>8}  {fate.before} -> {fate.after}{why}   e.g. {', '.join(fate.examples)}")
    lines += ["", "triplets"]
    for split, counts in changes.triplets.items():
        lines.append(f"  {split:<12}{counts['added']:>8} added {counts['removed']:>8} removed {counts['kept']:>8} kept")
    if changes.moved:
        lines.append(f"  {changes.moved} subjects changed their split")
    return "\n".join(lines)


def _settings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    sides = [
        _flat({name: manifest[name] for name in ("config", "code_version", "embedder")}) for manifest in (old, new)
    ]
    keys = [key for key in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(key) != sides[1].get(key)]
    return {key.removeprefix("config."): [side.get(key) for side in sides] for key in keys}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _shards(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    return {
        "new": sorted(new.keys() - old.keys()),
        "gone": sorted(old.keys() - new.keys()),
        "changed": sorted(key for key in old.keys() & new.keys() if old[key] != new[key]),
    }


def _images(before: Store, after: Store) -> tuple[list[Fate], int]:
    columns = ("shard", "offset", "key", "drop_reason")
    streams = [_by_subject(store, "images", columns) for store in (before, after)]
    fates: dict[tuple[str, str], Fate] = {}
    unchanged = 0
    for _, *sides in _side_by_side(*streams):
        old, new = (
            {(row["shard"], row["offset"], row["key"]): row["drop_reason"] or KEPT for row in rows} for rows in sides
        )
        for place in dict.fromkeys([*old, *new]):
            change = old.get(place, ABSENT), new.get(place, ABSENT)
            if change[0] == change[1]:
                unchanged += 1
                continue
            fate = fates.setdefault(change, Fate(*change))
            fate.images += 1
            if len(fate.examples) < _EXAMPLES:
                fate.examples.append(place[2])
    return sorted(fates.values(), key=lambda fate: (-fate.images, fate.before, fate.after)), unchanged


def _why(fate: Fate, settings: dict[str, list[Any]], shards: dict[str, list[str]]) -> list[str]:
    """Return the changed settings of the filters that drop such images, or the counts of changed raw shards."""
    if ABSENT in (fate.before, fate.after):
        kinds = ("new", "changed") if fate.before == ABSENT else ("gone", "changed")
        return [f"raw shards {kind}: {len(shards[kind])}" for kind in kinds if shards[kind]]
    reasons = {fate.before, fate.after} - {KEPT}
    own = [key for key in settings if any(key.startswith(f"filters.{reason}.") for reason in reasons)]
    if "filters.skip" in settings and reasons & {name for side in settings["filters.skip"] for name in side or ()}:
        own.append("filters.skip")
    wider = [key for key in ("embedder", "code_version") if key in settings]
    return [f"{key}: {settings[key][0]} -> {settings[key][1]}" for key in own or wider]


def _triplets(before: Store, after: Store) -> tuple[dict[str, dict[str, int]], int]:
    counts: dict[str, dict[str, int]] = {split: {"added": 0, "removed": 0, "kept": 0} for split in triplets.SPLITS}
    moved = 0
    for _, old, new in _side_by_side(_of_splits(before), _of_splits(after)):
        old_ids, new_ids = ({(row["split"], row["triplet_id"]) for row in rows} for rows in (old, new))
        for state, ids in (("added", new_ids - old_ids), ("removed", old_ids - new_ids), ("kept", old_ids & new_ids)):
            for split, _ in ids:
                counts[split][state] += 1
        moved += bool(old and new) and {split for split, _ in old_ids} != {split for split, _ in new_ids}
    return counts, moved


def _of_splits(version: Store) -> Subjects:
    """Yield the triplets of both splits by subject, in the order of hashes."""
    columns = ("triplet_id", "split")
    streams = (_by_subject(version, split, columns) for split in triplets.SPLITS)
    return heapq.merge(*streams, key=lambda item: item[0])


def _by_subject(version: Store, kind: Kind, columns: Sequence[str]) -> Subjects:
    """Yield the subjects of a table in the order of their hashes; a table of format 1 has the rows of both splits."""
    batches = (b for file in open_files(version, kind) for b in file.iter_batches(8192, columns=["subject", *columns]))
    rows = (row for batch in batches for row in batch.to_pylist() if kind == "images" or row["split"] == kind)
    for subject, group in groupby(rows, key=lambda row: str(row["subject"])):
        yield (subject_hash(subject), subject), list(group)


def _side_by_side(left: Subjects, right: Subjects) -> Iterator[tuple[str, Rows, Rows]]:
    """Yield (subject, its rows on the left, its rows on the right) for each subject of either."""
    numbered = [zip(repeat(side), stream, strict=False) for side, stream in enumerate((left, right))]
    for key, group in groupby(heapq.merge(*numbered, key=lambda item: item[1][0]), key=lambda item: item[1][0]):
        sides: tuple[Rows, Rows] = [], []
        for side, (_, rows) in group:
            sides[side].extend(rows)
        yield key[1], *sides
