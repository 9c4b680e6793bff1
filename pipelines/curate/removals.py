"""Apply the take-down list: find the images that it names in the raw shards and in earlier snapshots."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.storage import read_manifest
from pipelines.curate.takedown import (
    TakeDownWork,
    check_matched,
    count_matches,
    find_holders,
    pinned_hash,
    read_list,
    summed,
    widen,
)
from pipelines.curate.work import StageWork

log = logging.getLogger(__name__)

ENTRIES_SHOWN = 1000  # maximum entries in the manifest; a longer list has a separate file


def take_down(
    stage: StageWork, versions: list[int], run_tasks: Callable[..., Iterable[pa.Table]]
) -> tuple[StageWork, dict[str, Any] | None, dict[str, int]]:
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
    work = TakeDownWork(dataset.uri, settings.list, stage.rows, tuple(versions), stage.workspace)
    noun = "raw shards compared with the take-down list"
    counts, named = summed(run_tasks(count_matches, work, len(work.rows), noun=noun), len(taken))
    (table,) = run_tasks(widen, work, 1, noun="take-down lists widened")
    wide = str(table["uri"][0].as_py())
    before = read_manifest(dataset, versions[-1]).get("taken_down") if versions else None
    judged = before is not None and before["list"] == digest and "matched" in before
    if before is not None and judged and before["widened"] == pinned_hash(wide):
        held = before["held_by"]  # that snapshot holds none of them, and its manifest names those that do
        earlier = np.ones(len(taken), int)
    else:
        noun, search = "snapshots searched", replace(work, list=wide)
        tables = run_tasks(find_holders, search, len(versions), noun=noun) if versions else ()
        earlier, images = summed(tables, len(read_list(wide)))
        earlier = np.ones(len(taken), int) if judged else earlier[: len(taken)]
        held = {f"v{version:04d}": count for version, count in sorted(images.items())}
    check_matched(taken, counts, earlier, settings.allow_unmatched)
    if held:
        names = ", ".join(sorted(held))
        log.warning(
            "snapshots that hold images of the take-down list: %s; remove them, and models that were trained on them",
            names,
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
