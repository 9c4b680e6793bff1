"""Apply the take-down list: find the images that it names in the raw shards and in earlier snapshots."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store, read_manifest, version_store
from pipelines.actors import Columns, run_tasks
from pipelines.curate.tables import open_files, read_part
from pipelines.curate.takedown import (
    KINDS,
    TakeDownList,
    comparable,
    keep,
    parse_entry,
    pinned_hash,
    read_list,
    trimmed,
)
from pipelines.curate.work import Group, StageWork

log = logging.getLogger(__name__)

ENTRIES_SHOWN = 1000  # maximum entries in the manifest; a longer list has a separate file
_LINES_SHOWN = 20  # maximum entries in a job's output
_RESTORE = "restore it, or remove that version and its file in published/ if it is not used"


def take_down(stage: StageWork, versions: list[int]) -> tuple[StageWork, dict[str, Any] | None, dict[str, int]]:
    """Find the images that the take-down list names.

    Returns:
        The stage with the list widened by the content hashes of these images; the record of the list for the manifest
        (hash, entries, images of each entry, snapshots that hold such images), None without a list; and the images by
        entry if the manifest does not show them all.

    Raises:
        InputError: an entry names no image, here or in an earlier snapshot, and is not allowed to.
    """
    config, dataset, settings = stage.config, stage.dataset, stage.config.filters.taken_down
    if settings.list is None:
        return stage, None, {}
    taken, digest = read_list(settings.list), pinned_hash(settings.list)
    noun = "raw shards compared with the take-down list"
    counts, named = summed(run_tasks(count_matches, stage.for_tasks(), list(stage.groups()), noun=noun), len(taken))
    (table,) = run_tasks(widen, stage.for_tasks(), 1, noun="take-down lists widened")
    wide = str(table["uri"][0].as_py())
    before = read_manifest(dataset, versions[-1]).get("taken_down") if versions else None
    judged = before is not None and before["list"] == digest and "matched" in before
    if before is not None and judged and before["widened"] == pinned_hash(wide):
        held = before["held_by"]  # that snapshot holds none of them, and its manifest names those that do
        earlier = np.ones(len(taken), int)
    else:
        work = (dataset, wide, versions)
        tables = run_tasks(find_holders, work, len(versions), noun="snapshots searched") if versions else ()
        earlier, images = summed(tables, len(read_list(wide)))
        earlier = np.ones(len(taken), int) if judged else earlier[: len(taken)]
        held = {f"v{versions[unit]:04d}": count for unit, count in sorted(images.items())}
    check_matched(taken, counts, earlier, settings.allow_unmatched)
    if held:
        log.warning(
            "snapshots that hold images of the take-down list: %s; remove them, and models that were trained on them",
            ", ".join(sorted(held)),
        )
    matched = dict(zip(taken.names, counts.tolist(), strict=True))
    shown = dict(list(matched.items())[:ENTRIES_SHOWN])
    unmatched = [name for name, count in matched.items() if not count]
    record = {"list": digest, "widened": pinned_hash(wide), "entries": len(taken), "held_by": held, "matched": shown}
    record |= {"not_shown": len(matched) - len(shown), "unmatched": unmatched[:ENTRIES_SHOWN]}
    record["named"] = sum(named.values())
    filters = replace(config.filters, taken_down=replace(settings, list=wide))
    widened = replace(stage, config=replace(config, filters=filters))
    return widened, record, matched if len(matched) > len(shown) else {}


def count_matches(work: StageWork, group: Group) -> Columns:
    """Count the images of a group of raw shards that each take-down entry names; write their hashes for :func:`widen`.

    Returns a table for :func:`summed`.
    """
    counts, images, contents = np.zeros(len(_list_of(work)), np.int64), 0, set[str]()
    for shard in group.shards:
        rows = read_part(work.dataset, shard.rows, columns=list(KINDS))
        named, matched = _list_of(work).matches(rows)
        counts += matched
        images += int(named.sum())
        contents.update(content for content in rows.filter(pa.array(named))["sha256"].to_pylist() if content)
    text = "".join(f"sha256:{content}\n" for content in sorted(contents))
    work.dataset.write(work.workspace.take_down_contents(group.number), text.encode())
    return _counted(counts, images)


def widen(work: StageWork, unit: int) -> Columns:
    """Keep the list with the content hashes of all images that it names, and return its URI.

    So a photo that is removed by its key, subject or source is also removed as an equal file under another name.
    """
    uri, taken = str(work.config.filters.taken_down.list), _list_of(work)
    keys = [work.workspace.take_down_contents(group) for group in range(work.width)]
    with ThreadPoolExecutor(16) as pool:
        contents = {line for data in pool.map(work.dataset.read, keys) for line in data.decode().splitlines()}
    added = sorted(contents.difference(taken.names))
    if added:
        uri = keep("".join(f"{line}\n" for line in [*taken.names, *added]).encode(), work.dataset)
    return {"uri": np.array([uri], object)}


def find_holders(work: tuple[Store, str, list[int]], unit: int) -> Columns:
    """Count the kept images of a snapshot that a list names, and the rows of its image table that each entry names.

    ``work`` is the dataset, the URI of the list and the versions. The table is read in batches. Returns the columns of
    :func:`summed`.
    """
    dataset, uri, versions = work
    taken, held = read_list(uri), 0
    counts = np.zeros(len(taken), np.int64)
    store = version_store(dataset, versions[unit])
    with decoding("an image table", store.uri, fix=_RESTORE):
        files = open_files(store, "images")
        for batch in (b for file in files for b in file.iter_batches(65536, columns=[*KINDS, "drop_reason"])):
            rows = pa.Table.from_batches([batch])
            named, matched = taken.matches(rows)
            held += int((named & np.asarray(rows["drop_reason"].is_null())).sum())
            counts += matched
    return _counted(counts, held)


def summed(tables: Iterable[pa.Table], entries: int) -> tuple[np.ndarray, dict[int, int]]:
    """Return the sums over all tables: images that each entry names, int [entries], and images by unit that has any.

    The columns ``entry`` and ``images`` have a row for each entry that names images, and one for all images of the
    unit, whose ``entry`` is -1.
    """
    counts, held = np.zeros(entries, np.int64), dict[int, int]()
    for table in tables:
        for row in table.to_pylist():
            if row["entry"] >= 0:
                counts[row["entry"]] += row["images"]
            elif row["images"]:
                held[row["unit"]] = row["images"]
    return counts, held


def check_matched(taken: TakeDownList, counts: np.ndarray, before: np.ndarray, allowed: Sequence[str]) -> None:
    """Check that every entry names an image of the raw shards (``counts``) or of an earlier snapshot (``before``).

    Raises InputError if entries name no image and are not in ``allowed``.
    """
    of_setting = (parse_entry(trimmed(entry), "filters.taken_down.allow_unmatched", "the setting") for entry in allowed)
    permitted = {(kind, comparable(kind, name)) for kind, name in of_setting}
    missing = [
        name
        for name, (kind, text), count, earlier in zip(taken.names, taken.entries, counts, before, strict=True)
        if not count and not earlier and (kind, comparable(kind, text)) not in permitted
    ]
    if missing:
        shown = missing[:10]
        more = f" (10 of {len(missing)} are shown)" if len(missing) > 10 else ""
        raise InputError(
            f"{len(missing)} of {len(taken)} entries of the take-down list name no image{more}",
            value=shown,
            fix="compare them with the columns sha256, key, subject and source of the snapshots' image tables and"
            " correct them (the comparison includes case, %xx escapes and text after a #), or allow them:"
            f" --filters.taken_down.allow_unmatched '{_flag(shown)}'",
        )


def entry_lines(taken_down: Mapping[str, Any] | None) -> list[str]:
    """Return lines of a job's output: the images that each entry of the list names, entries without any first."""
    if taken_down is None:
        return []
    matched = sorted(taken_down.get("matched", {}).items(), key=lambda item: item[1] > 0)
    lines = [f"taken down: {entry!r} names {images} images" for entry, images in matched[:_LINES_SHOWN]]
    more = taken_down["entries"] - len(lines)
    return [*lines, f"taken down: {more} more entries, see manifest.json"] if more else lines


def _list_of(work: StageWork) -> TakeDownList:
    return read_list(str(work.config.filters.taken_down.list))


def _flag(entries: list[str]) -> str:
    """Return the entries as a YAML list for single quotes in a shell."""
    quoted = ('"' + entry.replace("\\", "\\\\").replace('"', '\\"') + '"' for entry in entries)
    return f"[{', '.join(quoted)}]".replace("'", "'\\''")


def _counted(counts: np.ndarray, images: int) -> Columns:
    entries = np.flatnonzero(counts)
    return {"entry": np.array([-1, *entries]), "images": np.array([images, *counts[entries]])}
