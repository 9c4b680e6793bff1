"""The workers of a fleet: this process, or Ray actors, which are started anew when they die."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol

from lookalike.errors import LookalikeError
from pipelines.finetune import FinetuneConfig
from pipelines.fleet.config import FleetConfig

log = logging.getLogger(__name__)

Result = dict[str, Any]
_CALLS = 2  # of an actor beside its requests: open and stop
_MOST_DEATHS = 3  # of a worker in a row while it loads the base


class WorkerLostError(LookalikeError):
    """The process of a worker died, with the requests that it had in work."""


class Place(Protocol):
    """Where requests are done."""

    def is_ready(self) -> bool:
        """Whether it has loaded the base. Raises LookalikeError if it cannot."""

    def submit(self, name: str, settings: FinetuneConfig) -> "Future[Result]":
        """Begin a request. The future raises WorkerLostError if the process died."""

    def stop(self) -> None:
        """Let what is in training write a checkpoint and end."""

    def close(self) -> None:
        """End it."""


class HerePlace:
    """Does requests in threads of this process."""

    def __init__(self, config: FleetConfig, base: tuple[str, str]) -> None:
        from pipelines.fleet.worker import Worker

        self._worker = Worker(config, *base)
        self._worker.open()
        self._threads = ThreadPoolExecutor(config.at_once, thread_name_prefix="finetune")

    def is_ready(self) -> bool:
        return True

    def submit(self, name: str, settings: FinetuneConfig) -> "Future[Result]":
        return self._threads.submit(self._worker.finetune, name, settings)

    def stop(self) -> None:
        self._worker.stop()

    def close(self) -> None:
        self._threads.shutdown()
        self._worker.close()


class ActorPlace:
    """Does requests in an actor, and starts another one when it has died."""

    def __init__(self, config: FleetConfig, base: tuple[str, str]) -> None:
        self._config, self._base = config, base
        self._actor: Any = None
        self._loading: Any = None  # the answer that is awaited, if it is
        self._dead, self._deaths = False, 0
        self._start()

    def is_ready(self) -> bool:
        """Raises WorkerLostError if it dies again and again while it loads the base."""
        import ray

        if self._dead:
            self._start()
        if self._loading is not None and ray.wait([self._loading], timeout=0)[0]:
            try:
                ray.get(self._loading)
                self._loading, self._deaths = None, 0
            except ray.exceptions.RayActorError:
                self._deaths += 1
                if self._deaths >= _MOST_DEATHS:
                    raise _lost("a worker died again and again while it loaded the base") from None
                self._start()
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
        return self._loading is None

    def submit(self, name: str, settings: FinetuneConfig) -> "Future[Result]":
        actor, ours = self._actor, Future[Result]()
        theirs = actor.finetune.remote(name, settings).future()
        theirs.add_done_callback(partial(self._ended, actor, ours))
        return ours

    def stop(self) -> None:
        self._actor.stop.remote()

    def close(self) -> None:
        import ray

        with suppress(Exception):
            ray.kill(self._actor)

    def _start(self) -> None:
        """Start an actor, in place of one that has died."""
        import ray

        from pipelines.fleet.worker import Worker

        if self._actor is not None:
            log.warning("a worker died, and another one is started")
            self.close()  # it may only be out of reach: then what it has in work must end
        config = self._config
        options: dict[str, Any] = {
            "num_cpus": config.worker_cpus,
            "num_gpus": 1 if config.use_gpu else 0,
            "max_concurrency": config.at_once + _CALLS,
            "scheduling_strategy": "SPREAD",
        }
        self._dead = False
        self._actor = ray.remote(Worker).options(**options).remote(config, *self._base)
        self._loading = self._actor.open.remote()

    def _ended(self, actor: Any, ours: "Future[Result]", theirs: "Future[Result]") -> None:
        """Pass on how a request ended; called by a thread of Ray."""
        import ray

        error = theirs.exception()
        if error is None:
            ours.set_result(theirs.result())
        elif isinstance(error, ray.exceptions.RayTaskError):
            ours.set_exception(error.cause)
        elif isinstance(error, ray.exceptions.RayActorError):
            self._dead = self._dead or actor is self._actor
            ours.set_exception(_lost("the worker of the request died"))
        else:
            ours.set_exception(error)


class Pool:
    """Places, each with the requests that it has in work."""

    def __init__(self, places: Sequence[Place], at_once: int) -> None:
        self._places, self._at_once = places, at_once
        self._in_work: list[dict[Future[Result], bool]] = [{} for _ in places]  # whether a request is to be alone

    def has_place(self, alone: bool) -> bool:
        """Whether a request could begin now; ``alone``: where no other is in work."""
        return bool(self._free(alone))

    def submit(self, name: str, settings: FinetuneConfig, alone: bool) -> "Future[Result]":
        """Begin a request where the fewest are in work; one that is to be ``alone`` is joined by none.

        There must be a place for it (:meth:`has_place`).
        """
        work = min(self._free(alone), key=len)
        (place,) = (place for place, each in zip(self._places, self._in_work, strict=True) if each is work)
        future = place.submit(name, settings)
        work[future] = alone
        return future

    def ended(self, future: "Future[Result]") -> None:
        """Take out a request that has ended."""
        for each in self._in_work:
            each.pop(future, None)

    def stop(self) -> None:
        """Let everything in training write a checkpoint and end."""
        for place in self._places:
            place.stop()

    def _free(self, alone: bool = False) -> "list[dict[Future[Result], bool]]":
        """The work of the places that take a further request."""
        free = []
        for place, work in zip(self._places, self._in_work, strict=True):
            if place.is_ready() and len(work) < (1 if alone else self._at_once) and not any(work.values()):
                free.append(work)
        return free


@contextmanager
def open_pool(config: FleetConfig, base: tuple[str, str]) -> Iterator[Pool]:
    """Start the workers of ``config`` for the base of this URI and hash, and end them after the block.

    Raises InputError if the base cannot be loaded.
    """
    places: list[Place] = []
    try:
        kind = ActorPlace if config.workers else HerePlace
        for _ in range(max(1, config.workers)):
            places.append(kind(config, base))
        yield Pool(places, config.at_once)
    finally:
        for place in places:
            place.close()


def _lost(what: str) -> WorkerLostError:
    return WorkerLostError(what, fix="look for an end by lack of memory in the logs of Ray; lower at_once")
