"""Compare two snapshots: settings, raw shards, images by reason, triplets. A task compares a range of subjects."""

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.config import canonical_json
from lookalike.data import triplets
from lookalike.data.part_lists import Kind
from lookalike.documents import decoding
from lookalike.storage import open_store, read_manifest
from lookalike.values import configuration
from pipelines.actors import Columns, run_tasks
from pipelines.curate.rows import hash_range
from pipelines.curate.snapshot_tables import FEW, Snapshot, ranges_of_subjects

_EXAMPLES = 3  # keys of images shown for each change of fate
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
    compared = _Compared.of(*(Snapshot.of(dataset, version) for version in versions))
    fates, unchanged, changed, moved = _summed(compared)
    for fate in fates:
        fate.why = _why(fate, settings, shards)
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


@dataclass(frozen=True)
class _Compared:
    """What the tasks get. The first units compare images, the others triplets."""

    before: Snapshot
    after: Snapshot
    ranges: tuple[int, int]
    """Ranges of subjects, for images and for triplets."""

    @classmethod
    def of(cls, before: Snapshot, after: Snapshot) -> "_Compared":
        both = (before, after)
        images = ranges_of_subjects([[snapshot.table("images")] for snapshot in both])
        rows = ranges_of_subjects([[snapshot.table(split) for split in triplets.SPLITS] for snapshot in both])
        return cls(before, after, (images, rows))


def compare_range(work: _Compared, unit: int) -> Columns:
    """Compare the images, or the triplets, of a range of subjects. Returns one ``result``, in JSON."""
    images, rows = work.ranges
    of_images = unit < images
    number, ranges = (unit, images) if of_images else (unit - images, rows)
    result = (_compare_images if of_images else _compare_triplets)(work, hash_range(number, ranges))
    return {"result": np.array([canonical_json(result)], object)}


def _summed(work: _Compared) -> tuple[list[Fate], int, dict[str, dict[str, int]], int]:
    """Sum the results of all units: changed images, the number of unchanged ones, triplets by state, moved subjects."""
    fates: dict[tuple[str, str], Fate] = {}
    examples: dict[
        tuple[str, str], list[tuple[int, int, str]]
    ] = {}  # with unit and place, since units end in any order
    unchanged, moved = 0, 0
    counts: dict[str, dict[str, int]] = {split: {"added": 0, "removed": 0, "kept": 0} for split in triplets.SPLITS}
    for table in run_tasks(compare_range, work, sum(work.ranges), noun="ranges of subjects compared", few=FEW):
        for unit, text in zip(table["unit"].to_pylist(), table["result"].to_pylist(), strict=True):
            result = json.loads(text)
            for before, after, images, keys in result.get("fates", []):
                change = before, after
                fates.setdefault(change, Fate(*change)).images += images
                found = [*examples.get(change, []), *((unit, place, key) for place, key in enumerate(keys))]
                examples[change] = heapq.nsmallest(_EXAMPLES, found)
            for split, states in result.get("triplets", {}).items():
                for state, number in states.items():
                    counts[split][state] += number
            unchanged += result.get("unchanged", 0)
            moved += result.get("moved", 0)
    for change, fate in fates.items():
        fate.examples = [key for _, _, key in examples[change]]
    return sorted(fates.values(), key=lambda fate: (-fate.images, fate.before, fate.after)), unchanged, counts, moved


def _compare_images(work: _Compared, span: tuple[int, int]) -> dict[str, Any]:
    place = ["subject", "shard", "offset", "key"]
    sides = []
    for snapshot in (work.before, work.after):
        rows = _read(snapshot, ["images"], span, [*place, "drop_reason"])
        reasons = pc.fill_null(rows["drop_reason"], "")
        sides.append(rows.set_column(len(place), "state", pc.if_else(pc.equal(reasons, ""), KEPT, reasons)))
    images = _side_by_side(sides, place)
    images = pa.table({name: images[name].fill_null(ABSENT) for name in ("before", "after")} | {"key": images["key"]})
    changed = images.filter(pc.not_equal(images["before"], images["after"]))
    fates = []
    for change in changed.select(["before", "after"]).group_by(["before", "after"]).aggregate([]).to_pylist():
        same = pc.and_(pc.equal(changed["before"], change["before"]), pc.equal(changed["after"], change["after"]))
        keys = changed["key"].filter(same)
        fates.append([change["before"], change["after"], len(keys), keys.slice(0, _EXAMPLES).to_pylist()])
    return {"fates": fates, "unchanged": len(images) - len(changed)}


def _compare_triplets(work: _Compared, span: tuple[int, int]) -> dict[str, Any]:
    place = ["subject", "split", "triplet_id"]
    sides = [_read(snapshot, triplets.SPLITS, span, place) for snapshot in (work.before, work.after)]
    sides = [rows.append_column("state", pa.array([KEPT] * len(rows), pa.string())) for rows in sides]
    rows = _side_by_side(sides, place)
    old, new = (rows[name].is_valid() for name in ("before", "after"))
    states = {"added": pc.and_not(new, old), "removed": pc.and_not(old, new), "kept": pc.and_(old, new)}
    counts: dict[str, dict[str, int]] = {}
    flags = {"subject": rows["subject"]}
    for split in triplets.SPLITS:
        mine = pc.equal(rows["split"], split)
        counts[split] = {state: pc.sum(pc.and_(mine, mask)).as_py() or 0 for state, mask in states.items()}
        flags |= {f"{side} {split}": pc.and_(mine, mask) for side, mask in (("old", old), ("new", new))}
    names = [name for name in flags if name != "subject"]
    subjects = pa.table(flags).group_by("subject").aggregate([(name, "any") for name in names])
    sets = {side: [np.asarray(subjects[f"{side} {split}_any"]) for split in triplets.SPLITS] for side in ("old", "new")}
    both = np.logical_or(*sets["old"]) & np.logical_or(*sets["new"])
    changed = np.logical_or(*(before != after for before, after in zip(sets["old"], sets["new"], strict=True)))
    return {"triplets": counts, "moved": int((both & changed).sum())}


def _read(snapshot: Snapshot, kinds: Sequence[Kind], span: tuple[int, int], columns: list[str]) -> pa.Table:
    tables = [rows for kind in kinds if (rows := snapshot.table(kind).read_span(span, columns)) is not None]
    schema = pa.schema([(name, pa.int64() if name == "offset" else pa.string()) for name in columns])
    with decoding("a table of a snapshot", snapshot.uri, fix="restore the version, or compare others"):
        return pa.concat_tables(rows.cast(schema) for rows in tables) if tables else schema.empty_table()


def _side_by_side(sides: Sequence[pa.Table], place: list[str]) -> pa.Table:
    """Return a row for each place of either side, with its ``state`` on each: null where it is not there.

    Places are in the order of the first side, followed by those of the second side only.
    """
    before, after = (
        rows.rename_columns({"state": name}) for rows, name in zip(sides, ("before", "after"), strict=True)
    )
    rows = pa.concat_tables([before, after], promote_options="default")
    joined = rows.group_by(place, use_threads=False).aggregate([("before", "last"), ("after", "last")])
    return joined.rename_columns({"before_last": "before", "after_last": "after"})
