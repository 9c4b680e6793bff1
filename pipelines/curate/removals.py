"""Apply the take-down list: find the images that it names in the raw shards and in earlier snapshots."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import InputError
from lookalike.storage import Store, read_manifest
from pipelines.actors import Columns, run_tasks
from pipelines.curate.snapshot_tables import Snapshot
from pipelines.curate.tables import read_part, read_table, write_table
from pipelines.curate.takedown import (
    KINDS,
    TakeDownList,
    comparable,
    contents_of,
    first_of_each,
    keep,
    parse_entry,
    pinned_hash,
    read_list,
    trimmed,
)
from pipelines.curate.work import Group, StageWork
from pipelines.curate.workspace import take_down_list

log = logging.getLogger(__name__)

ENTRIES_SHOWN = 1000  # maximum entries in the manifest; a longer list has a separate file
_LINES_SHOWN = 20  # maximum entries in a job's output
_AT_ONCE = 16  # requests
_RESTORE = "restore it, or remove that version and its file in published/ if it is not used"
_COUNTS = pa.schema([("entry", pa.int64()), ("images", pa.int64())])

# Values of ``entry`` that are no number of an entry: of the row for all named images, of a pack, and of a content hash.
_ALL, _PACK, _CONTENT = -1, -2, -3


@dataclass(frozen=True)
class Removals:
    """What :func:`take_down` has found."""

    stage: StageWork
    """With the list widened by the content hashes of all images that it names."""
    record: dict[str, Any] | None = None
    """For the manifest: hash of the list, entries, images of each entry, snapshots that hold such images; None without
    a list."""
    matched: dict[str, int] = field(default_factory=dict)
    """Images by entry, if the manifest does not show them all."""
    packs: frozenset[str] = frozenset()
    """Packs of earlier snapshots that hold an image which was taken down. The next snapshot must name none of them:
    their other images are to be stored anew. Empty if the newest snapshot names none of them already."""


def take_down(stage: StageWork, versions: list[int]) -> Removals:
    """Find the images that the take-down list names in the raw shards and in earlier snapshots.

    Raises InputError if an entry names no image, here or in an earlier snapshot, and is not allowed to.
    """
    config, dataset, settings = stage.config, stage.dataset, stage.config.filters.taken_down
    if settings.list is None:
        return Removals(stage)
    taken, digest = read_list(settings.list), pinned_hash(settings.list)
    noun = "groups of raw shards compared with the take-down list"
    counts, images = summed(run_tasks(count_matches, stage.for_tasks(), list(stage.groups()), noun=noun), len(taken))
    (table,) = run_tasks(widen, stage.for_tasks(), 1, noun="take-down lists widened")
    wide = str(table["uri"][0].as_py())
    of_raw, packs = pinned_hash(wide), frozenset[str]()
    before = (read_manifest(dataset, versions[-1]).get("taken_down") if versions else None) or {}
    judged, wide = _judged_before(taken, before, wide, dataset)
    if before.get("list") == digest and before.get("of_raw") == of_raw and before["widened"] == pinned_hash(wide):
        earlier = judged  # nothing that the list names is in that snapshot
        held = {name: count for name, count in before["held_by"].items() if name in map(_name, versions)}
    else:
        wide, found, held, packs = _search(dataset, wide, versions)
        earlier = found[: len(taken)] + judged
    check_matched(taken, counts, earlier, settings.allow_unmatched)
    if held:
        log.warning("%s", _holders(held, dataset.uri))
    shown = {taken.name(number): int(counts[number]) for number in range(min(len(taken), ENTRIES_SHOWN))}
    unmatched = [taken.name(number) for number in np.flatnonzero(counts == 0)[:ENTRIES_SHOWN].tolist()]
    record = {"list": digest, "widened": pinned_hash(wide), "of_raw": of_raw, "entries": len(taken), "held_by": held}
    record |= {"matched": shown, "not_shown": len(taken) - len(shown), "unmatched": unmatched}
    record |= {"named": sum(images.values()), "fix": _holders(held, "DATASET") if held else None}
    filters = replace(config.filters, taken_down=replace(settings, list=wide))
    widened = replace(stage, config=replace(config, filters=filters))
    matched = dict(zip(taken.names, counts.tolist(), strict=True)) if len(taken) > len(shown) else {}
    return Removals(widened, record, matched, packs)


def count_matches(work: StageWork, group: Group) -> Columns:
    """Count the images of a group of raw shards that each take-down entry names; write their hashes for :func:`widen`.

    Returns a table for :func:`summed`.
    """
    store, done = work.dataset, work.workspace.take_down_counts(group.number)
    if not store.exists(done):
        taken, images = _list_of(work), 0
        counts, contents = np.zeros(len(taken), np.int64), []
        for shard in group.shards:
            rows = read_part(store, shard.rows, columns=list(KINDS))
            named, matched = taken.matches(rows)
            counts += matched
            images += int(named.sum())
            contents.append(contents_of(rows["sha256"].filter(pa.array(named)))[1])
        store.write(work.workspace.take_down_contents(group.number), _to_bytes(np.concatenate(contents)))
        write_table(store, done, pa.table(_counted(counts, images), _COUNTS))
    return {
        name: column.to_numpy() for name, column in zip(_COUNTS.names, read_table(store, done).columns, strict=True)
    }


def widen(work: StageWork, unit: int) -> Columns:
    """Keep the list with the content hashes of all images that it names, and return its URI.

    So a photo that is removed by its key, subject or source is also removed as an equal file under another name. A hash
    takes 32 bytes of memory.
    """
    keys = [work.workspace.take_down_contents(group) for group in range(work.width)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        contents = np.concatenate(list(pool.map(lambda key: _from_bytes(work.dataset, key), keys)))
    return {"uri": np.array([_widened(str(work.config.filters.taken_down.list), contents, work.dataset)], object)}


@dataclass(frozen=True)
class HoldersWork:
    """What the tasks that search earlier snapshots get."""

    uri: str
    """Of the list."""
    units: tuple[tuple[Snapshot, int, int], ...]
    """Snapshot and half-open range of pieces of its image table, of each unit."""


def find_holders(work: HoldersWork, unit: int) -> Columns:
    """Count the images of a part of a snapshot that a list names and that the snapshot holds: kept ones, and those that
    a pack stores; and the rows that each entry names.

    Returns columns for :func:`summed`, with rows for these packs and for content hashes that the list lacks.
    """
    snapshot, first, stop = work.units[unit]
    taken, held = read_list(work.uri), 0
    counts, packs, contents = np.zeros(len(taken), np.int64), set[str](), []
    with _naming_fix():
        table = snapshot.table("images")
    stored = ["stored_shard"] if "stored_shard" in table.columns else []
    for piece in range(first, stop):
        with _naming_fix():
            rows = table.read(piece, [*KINDS, "drop_reason", *stored])
        named, matched = taken.matches(rows)
        counts += matched
        rows = rows.filter(pa.array(named))
        holds = rows["drop_reason"].is_null()
        if stored:
            packs.update(rows["stored_shard"].drop_null().unique().to_pylist())
            holds = pc.or_(holds, rows["stored_shard"].is_valid())
        held += pc.sum(holds).as_py() or 0
        hashes = contents_of(rows["sha256"])[1]
        contents.append(hashes[taken.find(hashes) < 0])
    lacking = np.concatenate([np.zeros((0, 4), np.uint64), *contents])
    names = [*sorted(packs), *(row.tobytes().hex() for row in lacking[first_of_each(lacking)].astype(">u8"))]
    kinds = np.repeat([_PACK, _CONTENT], [len(packs), len(names) - len(packs)])
    counted = _counted(counts, held)
    columns = {"entry": np.concatenate([counted["entry"], kinds])}
    columns["images"] = np.concatenate([counted["images"], np.zeros(len(names), np.int64)])
    return columns | {"name": np.array([*([""] * len(counted["entry"])), *names], object)}


@contextmanager
def _naming_fix() -> Iterator[None]:
    """Say in errors of damaged tables what is possible for an earlier snapshot."""
    try:
        yield
    except InputError as error:
        raise InputError(error.what, value=error.value, fix=_RESTORE) from error


def _search(dataset: Store, wide: str, versions: list[int]) -> tuple[str, np.ndarray, dict[str, int], frozenset[str]]:
    """Search earlier snapshots for images that the list at ``wide`` names.

    Returns the URI of the list, with the content hashes of these images too: a raw shard may have the bytes of one
    under another name. Then the rows that each entry names, the images that each snapshot holds, and their packs.
    """
    snapshots = {version: Snapshot.of(dataset, version) for version in versions}
    units = [
        (version, (snapshot, *pieces))
        for version, snapshot in snapshots.items()
        for pieces in snapshot.table("images").units()
    ]
    while True:
        work = HoldersWork(wide, tuple(unit for _, unit in units))
        noun = "groups of parts of earlier snapshots searched"
        tables = list(run_tasks(find_holders, work, len(units), noun=noun)) if units else []
        counts, images = summed(tables, len(read_list(wide)))
        contents = _named(tables, _CONTENT)
        if contents:  # equal files under other names are searched too; their hashes are in the list then
            lacking = contents_of(pa.chunked_array([pa.array(sorted(contents), pa.string())]))[1]
            wide = _widened(wide, lacking, dataset)
            continue
        held: dict[str, int] = {}
        for unit, count in sorted(images.items()):
            held[_name(units[unit][0])] = held.get(_name(units[unit][0]), 0) + count
        return wide, counts, held, frozenset(_named(tables, _PACK))


def _judged_before(taken: TakeDownList, before: Mapping[str, Any], wide: str, dataset: Store) -> tuple[np.ndarray, str]:
    """Compare the list with that of the newest snapshot, whose record is ``before``.

    Returns how often each entry is known to name an image: 1 if it is in that list too, so that an entry stays valid
    when the snapshots with its images were removed. And the URI of the list at ``wide``, with the content hashes of
    that snapshot's list if all entries of that list are still there.
    """
    judged = np.zeros(len(taken), np.int64)
    keys = [take_down_list(before[name]) for name in ("list", "widened") if name in before]
    if "matched" not in before or not all(map(dataset.exists, keys)):
        return judged, wide
    earlier, widened = (read_list(dataset.uri_of(key)) for key in keys)
    judged[taken.content_numbers] = earlier.find(taken.contents) >= 0
    known = {(kind, comparable(kind, name)) for kind, name in earlier.others.values()}
    mine = {number: (kind, comparable(kind, name)) for number, (kind, name) in taken.others.items()}
    judged[[number for number, entry in mine.items() if entry in known]] = 1
    if known <= set(mine.values()) and (taken.find(earlier.contents) >= 0).all():
        wide = _widened(wide, widened.contents, dataset)
    else:
        log.warning(
            "the take-down list lacks entries of the one before: files that are equal to images of snapshots which no"
            " longer exist are allowed again; to keep them out, add those of the %d content hashes in %s",
            len(widened.contents),
            dataset.uri_of(keys[1]),
        )
    return judged, wide


def _widened(uri: str, contents: np.ndarray, dataset: Store) -> str:
    """Keep the list at ``uri`` with ``contents``, and return the URI of the copy; the same URI if it has them."""
    taken = read_list(uri)
    if (taken.find(contents) >= 0).all():
        return uri
    return keep(taken.with_contents(contents), dataset)


def _named(tables: Iterable[pa.Table], kind: int) -> set[str]:
    return {name for table in tables for name in table["name"].filter(pc.equal(table["entry"], kind)).to_pylist()}


def _to_bytes(hashes: np.ndarray) -> bytes:
    return bytes(hashes[first_of_each(hashes)].astype(">u8").tobytes())


def _from_bytes(store: Store, key: str) -> np.ndarray:
    return np.frombuffer(store.read(key), ">u8").reshape(-1, 4).astype(np.uint64)


def _name(version: int) -> str:
    return f"v{version:04d}"


def _holders(held: Mapping[str, int], dataset: str) -> str:
    names = ", ".join(sorted(held))
    return (
        f"{names} {'holds' if len(held) == 1 else 'hold'} images of the take-down list: remove these versions and their"
        f" files in published/, then run python jobs/curate.py collect --dataset {dataset}, which removes packs that no"
        " other version names; and remove models that were trained on them"
    )


def summed(tables: Iterable[pa.Table], entries: int) -> tuple[np.ndarray, dict[int, int]]:
    """Return the sums over all tables: images that each entry names, int [entries], and images by unit that has any.

    The columns ``entry`` and ``images`` have a row for each entry that names images, and one for all images of the
    unit, whose ``entry`` is -1; others are below -1.
    """
    counts, held = np.zeros(entries, np.int64), dict[int, int]()
    for table in tables:
        unit, entry, images = (table[name].to_numpy() for name in ("unit", "entry", "images"))
        np.add.at(counts, entry[entry >= 0], images[entry >= 0])
        some = (entry == _ALL) & (images > 0)
        held |= dict(zip(unit[some].tolist(), images[some].tolist(), strict=True))
    return counts, held


def check_matched(taken: TakeDownList, counts: np.ndarray, before: np.ndarray, allowed: Sequence[str]) -> None:
    """Check that every entry names an image of the raw shards (``counts``) or of an earlier snapshot (``before``).

    Raises InputError if entries name no image and are not in ``allowed``.
    """
    of_setting = (parse_entry(trimmed(entry), "filters.taken_down.allow_unmatched", "the setting") for entry in allowed)
    permitted = {(kind, comparable(kind, name)) for kind, name in of_setting}
    absent = ((number, *taken.entry(number)) for number in np.flatnonzero((counts == 0) & (before == 0)).tolist())
    missing = [number for number, kind, text in absent if (kind, comparable(kind, text)) not in permitted]
    if missing:
        shown = [taken.name(number) for number in missing[:10]]
        more = f" (10 of {len(missing)} are shown)" if len(missing) > 10 else ""
        raise InputError(
            f"{len(missing)} of {len(taken)} entries of the take-down list name no image{more}",
            value=shown,
            fix="compare them with the columns sha256, key, subject and source of the snapshots' image tables and"
            " correct them (the comparison includes case, %xx escapes and text after a #), or allow them:"
            f" --filters.taken_down.allow_unmatched '{_flag(shown)}'",
        )


def entry_lines(taken_down: Mapping[str, Any] | None, dataset: str) -> list[str]:
    """Return lines of a job's output: the images that each entry of the list names, entries without any first; and what
    to do about earlier snapshots that hold such images."""
    if taken_down is None:
        return []
    held = taken_down.get("held_by")
    advice = [f"taken down: {_holders(held, dataset)}"] if held else []
    matched = sorted(taken_down.get("matched", {}).items(), key=lambda item: item[1] > 0)
    lines = [f"taken down: {entry!r} names {images} images" for entry, images in matched[:_LINES_SHOWN]]
    more = taken_down["entries"] - len(lines)
    return [*lines, *([f"taken down: {more} more entries, see manifest.json"] if more else []), *advice]


def _list_of(work: StageWork) -> TakeDownList:
    return read_list(str(work.config.filters.taken_down.list))


def _flag(entries: list[str]) -> str:
    """Return the entries as a YAML list for single quotes in a shell."""
    quoted = ('"' + entry.replace("\\", "\\\\").replace('"', '\\"') + '"' for entry in entries)
    return f"[{', '.join(quoted)}]".replace("'", "'\\''")


def _counted(counts: np.ndarray, images: int) -> Columns:
    entries = np.flatnonzero(counts)
    return {"entry": np.append(_ALL, entries), "images": np.append(images, counts[entries])}
