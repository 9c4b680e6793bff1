"""Generate what many requests ask for: plan batches, and record what became of each request."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lookalike.errors import LookalikeError
from lookalike.scratch import scratch
from lookalike.storage import open_store
from pipelines.actors import may_pass, retried, run_units
from pipelines.generate.config import GenerateConfig
from pipelines.generate.generation import Model, check_customer, find_model
from pipelines.generate.requests import (
    DONE,
    FAILED,
    GENERATED,
    Refused,
    Request,
    RequestFile,
    ResolvedRequest,
    result_row,
)

log = logging.getLogger(__name__)

RESULTS = "results.jsonl"
_WINDOW = 2048  # requests in memory
_SHOWN = 50  # failures in the log
_MODELS = 4096  # that are looked up once


@dataclass
class _Record:
    """Counts, and a line of ``results.jsonl`` for each request."""

    file: IO[str]
    states: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        self.states[row["state"]] += 1
        self.file.write(json.dumps(row, default=str) + "\n")
        if row["state"] == FAILED and self.states[FAILED] <= _SHOWN:
            value = "" if row["value"] is None else f" ({row['value']!r})"
            log.error("line %d, %s failed: %s%s; %s", row["line"], row["id"], row["what"], value, row["fix"])
        if row["state"] == FAILED and self.states[FAILED] == _SHOWN:
            log.error("further failures are in %s only", RESULTS)


def generate_many(config: GenerateConfig) -> dict[str, Any]:
    """Generate the images of all requests in ``config.requests``; those that fail fail alone.

    Each request is a generation of its own in ``OUT/ID``, with a claim, images, contact sheet and result as if its
    settings were those of a command. Requests of one base with equal size, steps, guidance and schedule share batches.
    ``OUT/results.jsonl`` has a line for each request: id, line, state, and place or reason.

    Returns ``requests``, the number by state (``generated``, ``done before``, ``failed``), and the URI of ``results``.

    Raises:
        InputError: the file is missing, empty or too large.
        UnreachableError: a store or MLflow does not answer; the same command resumes.
    """
    from pipelines.generate.batches import ManyWork, StackedGenerator

    out = open_store(config.out)
    work = ManyWork(config.actors, config.batch_size, config.adapters_mib)
    with scratch("requests") as folder, (folder / RESULTS).open("w", encoding="utf-8") as file:
        record, requests = _Record(file), RequestFile(config, folder)
        lines, models = iter(requests), _Models(config.tracking)
        while window := list(islice(lines, _WINDOW)):
            units = list(_units(window, models, record, config.batch_size))
            for table in run_units(StackedGenerator, work, units, config.actors):
                for row in table["result"].to_pylist():
                    record.add(json.loads(row))
            done = record.states.total()
            log.info("%d of %d requests done, %d of them failed", done, len(requests), record.states["failed"])
        file.close()
        out.upload(RESULTS, Path(file.name))
    counts = {state: record.states[state] for state in (GENERATED, DONE, FAILED)}
    return {"requests": len(requests), **counts, "results": out.uri_of(RESULTS)}


class _Models:
    """Models by name or place; each is looked up once, so that all its requests get the same version."""

    def __init__(self, tracking: str | None) -> None:
        self._find = lru_cache(_MODELS)(lambda *names: retried(lambda: find_model(names[0], tracking, *names[1:])))

    def of(self, config: GenerateConfig) -> Model:
        """Find the model of a request. Raises ConfigError if its places belong to another customer."""
        model: Model = self._find(config.model, config.bundle, config.base)
        check_customer(config, model)
        return model


def _units(
    window: Iterable[Request | Refused], models: _Models, record: _Record, batch_size: int
) -> Iterator[tuple[ResolvedRequest, ...]]:
    """Divide requests into units of about one batch, whose passes can be shared, in the order of the file."""
    waiting: dict[tuple[Any, ...], list[ResolvedRequest]] = {}
    for each in window:
        try:
            if isinstance(each, Refused):
                raise each.error
            asked = ResolvedRequest(each, models.of(each.config))
        except (LookalikeError, OSError) as error:
            if may_pass(error):
                raise
            record.add(result_row(each, FAILED, error))
            continue
        group = waiting.setdefault(asked.pass_settings, [])
        if group and sum(map(_images, group)) + _images(asked) > batch_size:
            yield tuple(group)
            group.clear()
        group.append(asked)
    yield from map(tuple, waiting.values())


def _images(asked: ResolvedRequest) -> int:
    return asked.config.num_images * len(asked.config.prompt)
