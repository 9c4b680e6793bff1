"""Runs of several threads that train in shared passes of one base, each its own adapter (in this process, without Ray).

A thread hands over its run with :meth:`SharedTrainer.fit`, which has the signature of
:func:`pipelines.train.worker_group.fit`, and waits until it is trained. One thread runs the passes.
"""

import logging
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from lookalike.bundles.load import load_model
from lookalike.bundles.transfer import local_bundle
from lookalike.diffusion.flow import FlowConfig
from lookalike.errors import ConfigError
from lookalike.models.joint import import_model_classes
from lookalike.models.stacked_lora import AdapterStack, new_adapter
from lookalike.models.vae import load_vae
from lookalike.storage import Store, open_store
from lookalike.storage.lease import Fence, Lease
from lookalike.training import checkpoint
from lookalike.training.engine import PlainEngine
from lookalike.training.objective import DenoisingObjective
from lookalike.training.ranks import Rank
from lookalike.training.shared_passes import Ended, SharedPasses
from lookalike.training.stopping import STOP
from pipelines.train.settings import LEASE, WorkerSettings
from pipelines.train.worker import first_read, opened_loop, rank_batches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    """A run that was handed over."""

    settings: WorkerSettings
    done: Future[None]


class SharedTrainer:
    """Trains personal adapters of one base; threads may hand over runs at any time.

    The base is in memory once. A run learns what it learns alone (:mod:`lookalike.training.shared_passes`).
    """

    def __init__(self, bundle_uri: str, sha256: str | None = None, *, device: str = "cpu", max_rows: int = 32) -> None:
        """``bundle_uri`` is the base, whose hash is ``sha256`` if it is given."""
        import_model_classes()
        self._sha256, self._device = sha256, torch.device(device)
        self._bundle: Path = local_bundle(bundle_uri, sha256)
        self._model = load_model(self._bundle).to(self._device)
        self._model.set_trainable(())
        self._vae = load_vae(self._bundle).to(self._device)
        flow = FlowConfig.from_bundle(self._bundle)
        self._stack = AdapterStack(self._model)
        self._passes = SharedPasses(self._stack, self._vae, flow, self._device, max_rows)
        self._flow = flow
        self._change = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._running: dict[str, tuple[Future[None], ExitStack]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="shared-passes", daemon=True)
        self._thread.start()

    def fit(self, settings: WorkerSettings, store: Store, lease: Lease) -> None:
        """Train a run from its last checkpoint to the end; several threads may wait here at once.

        Raises:
            ConfigError: the run is not of an adapter on this base, or not for one process.
            StoppedError, TrainingDivergedError, UnusableDataError: as its loop raised them.
        """
        self._check(settings)
        if checkpoint.newest(store) >= settings.config.total_steps:
            return
        waiting = _Waiting(settings, Future())
        with self._change:
            if self._closed:
                raise RuntimeError("the trainer is closed")
            self._waiting.append(waiting)
            self._change.notify()
        waiting.done.result()
        lease.check()

    def stop(self) -> None:
        """Ask all runs to stop; each writes a checkpoint, and its thread gets a StoppedError."""
        with self._change:
            names = [*self._running, *(waiting.settings.config.run for waiting in self._waiting)]
        for name in names:
            open_store(name).write(STOP, b"")

    def close(self) -> None:
        """End the thread after the runs that are in it."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()
        self._stack.close()

    def _check(self, settings: WorkerSettings) -> None:
        config = settings.config
        if config.workers.num_workers > 0 or config.adapter is None or config.precision != "float32":
            raise ConfigError(
                "shared passes train adapters in one process in float32",
                value=f"workers.num_workers={config.workers.num_workers}, precision={config.precision}",
                fix="set workers.num_workers to 0, or train this run alone",
            )
        if self._sha256 is not None and settings.base_sha256 != self._sha256:
            raise ConfigError(
                f"the run trains on the base {settings.base_sha256:.12}, and this process holds {self._sha256:.12}",
                value=config.run,
                fix="hand it to a worker of its base",
            )

    def _serve(self) -> None:
        try:
            self._serve_runs()
        except BaseException as error:
            with self._change:
                self._closed = True
                for done in [
                    *(done for done, _ in self._running.values()),
                    *(waiting.done for waiting in self._waiting),
                ]:
                    done.set_exception(error)
            raise

    def _serve_runs(self) -> None:
        """Run passes while there are runs; each run's loop is opened and closed by this thread."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed or self._running)
                new, self._waiting = self._waiting, []
                if self._closed and not new and not self._running:
                    return
            for waiting in new:
                self._begin(waiting)
            for ended in self._passes.step():
                self._end(ended)

    def _begin(self, waiting: _Waiting) -> None:
        settings, name, opened = waiting.settings, waiting.settings.config.run, ExitStack()
        self._running[name] = (waiting.done, opened)
        try:
            config = settings.config
            assert config.adapter is not None
            adapter = new_adapter(self._model, config.adapter, config.seed)
            objective = DenoisingObjective(
                self._stack.alone(adapter), self._vae, self._flow, config.dropout, config.seed, self._device
            )
            engine = PlainEngine(
                objective.model, adapter.parameters, config.optimizer, config.accumulation(1), config.ema
            )
            Fence(open_store(config.run).child(LEASE), settings.lease).check()
            batches = first_read(rank_batches(settings, Rank()))
            loop = opened.enter_context(opened_loop(settings, Rank(), engine, objective, self._bundle))
            ended = self._passes.join(name, loop, adapter, batches)
        except Exception as error:
            ended = Ended(name, error)
        if ended is not None:
            self._end(ended)

    def _end(self, ended: Ended) -> None:
        done, opened = self._running.pop(ended.name)
        error = ended.error
        try:
            opened.close()
        except Exception as late:
            error = error or late
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
