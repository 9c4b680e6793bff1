"""Work through requests: a thread for each that is in work, and one base for the training of all."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lookalike.errors import BusyError, StoppedError, UnreachableError
from lookalike.registry import resolve
from lookalike.storage import Store, open_store
from lookalike.storage.lease import hold
from pipelines.entry import ray_session
from pipelines.finetune import finetune
from pipelines.fleet.config import FleetConfig
from pipelines.fleet.requests import LEASES, Refused, Request, in_turn, read_requests, record_failure

if TYPE_CHECKING:  # it imports the libraries of models, for which a job need not wait
    from pipelines.train.shared import SharedTrainer

log = logging.getLogger(__name__)


@dataclass
class _Work:
    """What a fleet has done so far."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    """Requests that another fleet works on."""

    @property
    def known(self) -> set[str]:
        return {*self.results, *self.failed, *self.busy}


def fleet(config: FleetConfig) -> dict[str, Any]:
    """Work through the requests; return ``results`` and ``failed`` (why) by the names of their files.

    A request that fails fails alone. Each finetune resumes by itself, so that a fleet that was killed goes on when it
    is started again; several fleets may share a folder, since a request in work is leased.

    Raises:
        StoppedError: SIGTERM or Ctrl-C; what was training has written a checkpoint.
        InputError: no such model.
    """
    folder = open_store(config.requests)
    base = resolve(config.model, config.tracking, config.base)
    uri = open_store(base.bundle_uri).uri
    device = "cuda" if config.use_gpu else "cpu"
    work, running = _Work(), dict[Future[dict[str, Any]], Request]()
    with (
        ray_session(),
        _trainer(uri, base.bundle_sha256, device, config) as trainer,
        ThreadPoolExecutor(config.at_once, thread_name_prefix="finetune") as threads,
    ):
        try:
            while _start(config, folder, work, running, threads, trainer) or config.serve:
                done, _ = wait(running, config.poll_s, FIRST_COMPLETED) if running else _rest(config.poll_s)
                for each in done:
                    _record(folder, work, running.pop(each), each)
        except (KeyboardInterrupt, SystemExit):
            log.warning("stopping: what is in training writes a checkpoint, what is being evaluated ends")
            while wait(running, 1.0).not_done:
                trainer.stop()
            raise StoppedError("stopped", fix="the same command goes on with the requests that are left") from None
    return {"results": work.results, "failed": work.failed, "busy": sorted(work.busy)}


@contextmanager
def _trainer(uri: str, sha256: str, device: str, config: FleetConfig) -> Iterator["SharedTrainer"]:
    import torch

    from pipelines.train.shared import SharedTrainer

    torch.set_num_threads(config.threads)
    trainer = SharedTrainer(uri, sha256, device=device, max_rows=config.max_rows)
    try:
        yield trainer
    finally:
        trainer.close()


def _rest(seconds: float) -> tuple[set[Future[dict[str, Any]]], set[Future[dict[str, Any]]]]:
    time.sleep(seconds)
    return set(), set()


def _start(
    config: FleetConfig,
    folder: Store,
    work: _Work,
    running: dict[Future[dict[str, Any]], Request],
    threads: ThreadPoolExecutor,
    trainer: "SharedTrainer",
) -> bool:
    """Start requests while there is room; return whether any is running."""
    names = {request.name for request in running.values()}
    room = config.at_once - len(running)
    if room > 0:
        found = read_requests(folder, config, {*work.known, *names})
        for each in found:
            if isinstance(each, Refused):
                record_failure(folder, each.name, each.sha256, each.error)
                work.failed[each.name] = str(each.error)
                log.error("%s is refused: %s", each.name, each.error)
        places = {(request.config.customer, request.config.subject) for request in running.values()}
        for request in in_turn(each for each in found if isinstance(each, Request)):
            place = (request.config.customer, request.config.subject)
            if room == 0 or place in places:  # two requests of one subject take turns
                continue
            places.add(place)
            room -= 1
            log.info("%s begins: %s of %s", request.name, request.config.subject, request.config.customer)
            running[threads.submit(_finetune, config, folder, request, trainer)] = request
    return bool(running)


def _finetune(config: FleetConfig, folder: Store, request: Request, trainer: "SharedTrainer") -> dict[str, Any]:
    with hold(folder.child(LEASES).child(request.name)):
        settings = replace(request.config, actors=config.actors)
        for left in reversed(range(config.tries)):
            try:
                return finetune(settings, trainer.fit)
            except UnreachableError as error:
                if left == 0:
                    raise
                log.warning("%s is tried again: %s", request.name, error)
                time.sleep(config.poll_s)
    raise AssertionError("tries is at least 1")


def _record(folder: Store, work: _Work, request: Request, done: Future[dict[str, Any]]) -> None:
    error = done.exception()
    if error is None:
        result = work.results[request.name] = done.result()
        state = "promoted" if result["promoted"] else "refused by the gate"
        log.info("%s is done: models:/%s/%s, %s", request.name, result["model"], result["version"], state)
    elif isinstance(error, BusyError):
        work.busy.add(request.name)
        log.info("%s is left to another process: %s", request.name, error)
    elif isinstance(error, StoppedError):  # no record: it resumes with the next fleet
        work.failed[request.name] = str(error)
        log.warning("%s has stopped: %s", request.name, error)
    elif not isinstance(error, Exception):
        raise error
    else:
        record_failure(folder, request.name, request.sha256, error)
        work.failed[request.name] = str(error)
        log.error("%s failed: %s", request.name, error, exc_info=error if log.isEnabledFor(logging.DEBUG) else None)
