"""Write checkpoints while training continues."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from torch import Tensor

from lookalike.storage import Store
from lookalike.storage.lease import Fence
from lookalike.training import checkpoint
from lookalike.training.checkpoint import CheckpointState
from lookalike.training.loop_config import CheckpointConfig


class Saver:
    """Copies the state at a step (a collective); a thread of the first rank writes the copy.

    That rank holds one copy of the trainable state in host memory while it is written. A failed write, or a lease that
    another process holds, ends the run at the next step, at the next save or on exit, whichever comes first.
    """

    def __init__(self, store: Store, config: CheckpointConfig, *, write: bool, fence: Fence | None = None) -> None:
        self._store, self._config, self._write, self._fence = store, config, write, fence
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: CheckpointState, tensors: Iterable[tuple[str, Tensor]], beside: Mapping[str, bytes]) -> None:
        """Copy the state and return; waits for the previous write.

        ``beside`` are objects of the run that must not be older than the checkpoint: they are written first.
        """
        self.wait()
        parts = checkpoint.snapshot(tensors, keep=self._write)
        if self._write:
            self._writing = self._pool.submit(self._put, state, parts, beside)

    def check(self) -> None:
        """Raise the error of a finished write."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; raises the error of its write."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
