"""A worker of a fleet: the base in memory, and finetunes of several requests that train together on it."""

import logging
import time
from dataclasses import replace
from typing import Any

import torch

from lookalike.errors import UnreachableError
from lookalike.redaction import redact_logs
from lookalike.storage import open_store
from lookalike.storage.lease import hold
from pipelines.finetune import FinetuneConfig, finetune
from pipelines.fleet.config import FleetConfig
from pipelines.fleet.records import LEASES
from pipelines.train.shared import SharedTrainer

log = logging.getLogger(__name__)


class Worker:
    """Finetunes requests; threads may call it at once. It is the body of an actor, and works in a plain process too."""

    def __init__(self, config: FleetConfig, base_uri: str, base_sha256: str) -> None:
        redact_logs()
        self._config, self._base = config, (base_uri, base_sha256)
        self._trainer: SharedTrainer | None = None

    def open(self) -> None:
        """Load the base. Raises InputError if it is not there, or was replaced."""
        torch.set_num_threads(self._config.threads)
        device = "cuda" if self._config.use_gpu else "cpu"
        self._trainer = SharedTrainer(*self._base, device=device, max_rows=self._config.max_rows)

    def finetune(self, name: str, settings: FinetuneConfig) -> dict[str, Any]:
        """Do one request; what did not answer is tried again.

        Raises BusyError if another process works on it, and what :func:`pipelines.finetune.finetune` raises.
        """
        config = self._config
        assert self._trainer is not None, "open comes first"
        with hold(open_store(config.requests).child(LEASES).child(name)):
            for left in reversed(range(config.tries)):
                try:
                    return finetune(replace(settings, actors=config.actors), self._trainer.fit)
                except UnreachableError as error:
                    if left == 0:
                        raise
                    log.warning("%s is tried again: %s", name, error)
                    time.sleep(config.poll_s)
        raise AssertionError("tries is at least 1")

    def stop(self) -> None:
        """Let what is in training write a checkpoint and end with a StoppedError."""
        if self._trainer is not None:
            self._trainer.stop()

    def close(self) -> None:
        """Free the base."""
        if self._trainer is not None:
            self._trainer.close()
