"""The tracker's run of a training run: created once, continued by each attempt, replaced if it was deleted."""

import logging
import time
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from lookalike import config as configs
from lookalike.documents import render_json
from lookalike.errors import InputError, LookalikeError, UnreachableError
from lookalike.storage import Store, read_members
from lookalike.tracking import Tracker, open_resilient, open_tracker, tracking_uri
from lookalike.tracking.base import NO_RUN
from lookalike.training.config import TrainConfig
from lookalike.training.history import readable_records

log = logging.getLogger(__name__)

RECORD = "tracking.json"
_LATEST = 1e11  # seconds since 1970
_REPLAYED = 5_000  # records of metrics.jsonl that a new run gets at most, evenly over the steps


def tracking_run(config: TrainConfig, store: Store, snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return ``tracking_run``, the id of the tracker's run, and ``submitted``, when the run was first started.

    The first attempt raises if the tracker does not answer, so that a wrong address is noticed before hours of work.
    Later attempts continue in any case. If their run is missing (it or its experiment was deleted, or ``--tracking``
    names another server), they start a new one, which gets the metrics so far.
    """
    record = _read(store)
    try:
        if record is None or not _is_there(config, record["tracking_run"]):
            record = _start(config, store, snapshot, record)
    except LookalikeError as error:
        if record is None:
            raise
        log.warning("the tracker cannot be used: %s. Training resumes; what it records is sent later", error)
    return {name: record[name] for name in ("tracking_run", "submitted")}


def _start(
    config: TrainConfig, store: Store, snapshot: dict[str, Any], earlier: dict[str, Any] | None
) -> dict[str, Any]:
    """Start a run in the tracker and record its id; it gets the metrics of the run that it replaces."""
    name = PurePosixPath(unquote(store.uri)).name
    with open_resilient(config.tracking, config.experiment, run_name=name, spool=store) as tracker:
        tracker.log_config({**configs.to_dict(config), "snapshot": snapshot})
        record: dict[str, Any] = {"tracking_run": tracker.run_id, "submitted": time.time()}
        if earlier is not None:
            _replay(tracker, store)
            record["submitted"] = earlier["submitted"]
            record["earlier"] = [*earlier["earlier"], earlier["tracking_run"]]
        store.write(RECORD, render_json(record))
    if earlier is not None and earlier["tracking_run"] != NO_RUN:
        old, new = earlier["tracking_run"], record["tracking_run"]
        log.warning("the tracker has no run %s: the training run continues as its run %s", old, new)
    return record


def record_result(config: TrainConfig, store: Store, run_id: str, tags: dict[str, str]) -> None:
    """Deliver what an earlier process could not, set tags of the run and end it."""
    with open_resilient(config.tracking, config.experiment, run_id=run_id, spool=store) as tracker:
        if tags:
            tracker.set_tags(tags)


def _read(store: Store) -> dict[str, Any] | None:
    """Read the record; None if it is missing or damaged, and training resumes without it."""
    if not store.exists(RECORD):
        return None
    try:
        record = read_members(store, RECORD, {"tracking_run": str, "submitted": float})
    except InputError:
        record = {}
    earlier = record.get("earlier", [])
    if record and isinstance(earlier, list) and 0 <= record["submitted"] < _LATEST:
        return {**record, "submitted": float(record["submitted"]), "earlier": earlier}
    log.warning("%s is damaged; the training run gets a new run in the tracker", store.uri_of(RECORD))
    return None


def _is_there(config: TrainConfig, run_id: str) -> bool:
    """Return whether the tracker can continue ``run_id``. Raises UnreachableError if it does not answer."""
    if tracking_uri(config.tracking).startswith("none:"):
        return True  # nothing is recorded; the id is kept for a later attempt with a tracker
    if run_id == NO_RUN:
        return False
    try:
        open_tracker(config.tracking, config.experiment, run_id=run_id)
    except UnreachableError:
        raise
    except LookalikeError:
        return False
    return True


def _replay(tracker: Tracker, store: Store) -> None:
    records = readable_records(store)
    for record in records[:: -(-len(records) // _REPLAYED) or 1]:
        held_out = record.get("validation")
        kind, values = ("train", record) if held_out is None else ("validation", held_out)
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, float)}
        if numbers:
            tracker.log_metrics(numbers, record["step"])
