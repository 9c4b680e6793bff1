"""Work through requests: which one begins, where, and what became of it."""

import logging
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lookalike.errors import BusyError, LookalikeError, StoppedError, UnreachableError
from lookalike.registry import resolve
from lookalike.storage import open_store
from pipelines.actors import retried
from pipelines.entry import ray_session
from pipelines.fleet.config import FleetConfig
from pipelines.fleet.inbox import Inbox
from pipelines.fleet.records import record_done, record_failure
from pipelines.fleet.requests import Request, config_of
from pipelines.fleet.turns import in_turn
from pipelines.fleet.workers import Pool, WorkerLostError, open_pool

log = logging.getLogger(__name__)

_BUSY_S = 30.0  # until a request that another process had in work is tried again
_LOADING_S = 0.2  # between two looks at workers that load the base


def fleet(config: FleetConfig) -> dict[str, Any]:
    """Work through the requests.

    Returns by the names of their files: ``results``; ``failed``, with the reason; ``busy``, a list of those that
    another process has in work; and ``earlier``, the number of those that were done before.

    A request that fails fails alone. Each finetune resumes by itself, so that a fleet that was killed, and a request
    whose worker was, continue; several fleets may share a folder, since a request in work is leased.

    Raises:
        StoppedError: SIGTERM or Ctrl-C; what was training has written a checkpoint.
        InputError: no such model.
        WorkerLostError: workers die while they load the base.
    """
    base = resolve(config.model, config.tracking, config.base)
    with (
        ray_session(),
        open_pool(config, (open_store(base.bundle_uri).uri, base.bundle_sha256)) as pool,
    ):
        work = _Fleet(config, pool)
        try:
            while work.start() or config.serve:
                work.wait()
        except (KeyboardInterrupt, SystemExit):
            log.warning("stopping: what is in training writes a checkpoint, what is being evaluated ends")
            while wait(work.running, 1.0).not_done:
                pool.stop()
            raise StoppedError("stopped", fix="the same command continues with the requests that are left") from None
    busy = sorted(work.busy)
    return {"results": work.results, "failed": work.failed, "busy": busy, "earlier": work.inbox.earlier}


@dataclass
class _Fleet:
    """The requests of a folder, and what a fleet has done so far."""

    config: FleetConfig
    pool: Pool
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    busy: dict[str, tuple[Request, float]] = field(default_factory=dict)
    """Requests that another process has in work, each with the time when it is tried again."""
    running: dict[Future[dict[str, Any]], Request] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    """Requests that are done, by customer."""
    deaths: Counter[str] = field(default_factory=Counter)
    """How often the worker of a request died."""

    def __post_init__(self) -> None:
        self.folder = open_store(self.config.requests)
        self.inbox = Inbox(self.folder, self.config.poll_s)

    def start(self) -> bool:
        """Begin requests while there is room; return whether anything is left to do or in work."""
        self._look()
        self._try_busy_again()
        waiting = {request.ticket: request for request in self.inbox.waiting}
        in_work = [request.ticket for request in self.running.values()]
        if waiting and self.pool.has_place(alone=False):
            for ticket in in_turn(waiting, in_work, self.done, self.config.quota):
                if not self.pool.has_place(alone=self.deaths[ticket.name] > 0):
                    break
                self._begin(waiting[ticket])
        return bool(self.running or self.inbox.waiting or self.inbox.unread or self._lost_ones())

    def wait(self) -> None:
        """Wait until a request ends, or it is time to look again, and record what ended."""
        seconds = self.config.poll_s if self.running or not self.inbox.waiting else _LOADING_S
        if not self.running:
            time.sleep(seconds)
            return
        for future in wait(self.running, seconds, FIRST_COMPLETED).done:
            self.pool.ended(future)
            self._record(self.running.pop(future), future)

    def _look(self) -> None:
        idle = not (self.running or self.inbox.waiting)
        if not idle and not self.pool.has_place(alone=False):
            return
        try:
            found = self.inbox.look(now=idle and not self.config.serve)
        except UnreachableError as error:
            if idle and not self.config.serve:
                raise
            log.warning("the folder of requests is read later: %s", error)
            return
        for refused in found:
            self._fail(refused.name, refused.sha256, refused.error)

    def _try_busy_again(self) -> None:
        now = time.monotonic()
        for name, (request, when) in list(self.busy.items()):
            if now >= when and (self.running or self.config.serve or self.deaths[name]):
                del self.busy[name]
                self.inbox.put_back(request)

    def _lost_ones(self) -> list[str]:
        """Requests whose lease a dead worker still has: they become free."""
        return [name for name in self.busy if self.deaths[name]]

    def _begin(self, request: Request) -> None:
        name = request.ticket.name
        self.inbox.take(request)
        try:
            settings = config_of(request, self.config)
        except LookalikeError as error:
            self._fail(name, request.sha256, error)
            return
        self.running[self.pool.submit(name, settings, alone=self.deaths[name] > 0)] = request
        log.info("%s begins: %s of %s", name, request.ticket.subject, request.ticket.customer)

    def _record(self, request: Request, future: Future[dict[str, Any]]) -> None:
        name, error = request.ticket.name, future.exception()
        if error is None:
            result = self.results[name] = future.result()
            self.failed.pop(name, None)
            self.done[request.ticket.customer] += 1
            retried(partial(record_done, self.folder, name, request.tag, result))
            state = "promoted" if result["promoted"] else "refused by the gate"
            log.info("%s is done: models:/%s/%s, %s", name, result["model"], result["version"], state)
        elif isinstance(error, BusyError):
            self.busy[name] = request, time.monotonic() + (self.config.poll_s if self.deaths[name] else _BUSY_S)
            log.info("%s is left to another process: %s", name, error)
        elif isinstance(error, WorkerLostError) and self.deaths[name] + 1 < self.config.tries:
            self.deaths[name] += 1
            self.inbox.put_back(request)  # it resumes from its last checkpoint, alone in its worker
            log.warning("%s resumes in another worker: %s", name, error)
        elif isinstance(error, StoppedError):  # no record: it resumes with the next fleet
            self.failed[name] = str(error)
            log.warning("%s has stopped: %s", name, error)
        elif not isinstance(error, Exception):
            raise error
        else:
            self._fail(name, request.sha256, error)
        counts = len(self.results), len(self.failed), len(self.running), len(self.inbox.waiting) + self.inbox.unread
        log.info("%d done, %d failed, %d in work, %d waiting", *counts)

    def _fail(self, name: str, sha256: str, error: Exception) -> None:
        retried(partial(record_failure, self.folder, name, sha256, error))
        self.failed[name] = str(error)
        debug = log.isEnabledFor(logging.DEBUG)
        log.error("%s failed: %s", name, error, exc_info=error if debug else None)
