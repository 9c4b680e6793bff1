"""Measure the peak memory of a process and its descendants."""

import threading
from contextlib import suppress
from types import TracebackType

import psutil

_EVERY_S = 0.3


class PeakMemory:
    """``with PeakMemory(pid) as peak``: afterwards ``peak.own`` and ``peak.tree``, in bytes.

    ``own`` is the process's private memory (USS); ``tree`` is that of it and its descendants, each shared page counted
    once (PSS).
    """

    def __init__(self, pid: int) -> None:
        self._root, self._done = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.own = self.tree = 0

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_S):
            with suppress(psutil.NoSuchProcess):
                self.own = max(self.own, self._root.memory_full_info().uss)
                self.tree = max(self.tree, sum(map(_pss, [self._root, *self._root.children(recursive=True)])))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it ended while we looked
        return 0
