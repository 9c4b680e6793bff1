"""Checkpoints written while training continues."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from torch import Tensor

from lookalike.storage import Store
from lookalike.storage.lease import Fence
from lookalike.training import checkpoint
from lookalike.training.checkpoint import CheckpointState
from lookalike.training.loop_config import CheckpointConfig


class Saver:
    """Copies the state at a step, which is a collective, and lets a thread of the first rank write the copy.

    That rank holds one copy of the trainable state in host memory while it is written. A write that fails ends the run
    at the next step, the next save or on leaving, whichever comes first. So does a lease that another process holds.
    """

    def __init__(self, store: Store, config: CheckpointConfig, *, write: bool, fence: Fence | None = None) -> None:
        self._store, self._config, self._write, self._fence = store, config, write, fence
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: CheckpointState, tensors: Iterable[tuple[str, Tensor]], beside: Mapping[str, bytes]) -> None:
        """Take the copy and return; waits for the write before.

        ``beside`` are objects of the run that must not be older than the checkpoint: they are written first.
        """
        self.wait()
        parts = checkpoint.snapshot(tensors, keep=self._write)
        if self._write:
            self._writing = self._pool.submit(self._put, state, parts, beside)

    def check(self) -> None:
        """Raise what a finished write has raised."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is complete; raises what its write has raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        self.wait()

    def _put(self, state: CheckpointState, parts: list[dict[str, Tensor]], beside: Mapping[str, bytes]) -> None:
        if self._fence:
            self._fence.check()
        for key, data in beside.items():
            self._store.write(key, data)
        checkpoints = self._store.child(checkpoint.CHECKPOINTS)
        checkpoint.write(checkpoints, state, parts, self._fence)
        checkpoint.prune(checkpoints, self._config.keep, self._config.keep_every)
