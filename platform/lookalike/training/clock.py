"""Measure the time and the peak memory of training steps."""

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GB = 10**9


class StepClock:
    """Sums seconds by name, and reports the peak of this process's memory on its device."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the seconds of the body to ``name``.

        On a GPU these are the seconds from the end of the work queued before to the end of the work queued by the body;
        the host waits for them only in :meth:`take`.
        """
        if self._gpu is None:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(torch.cuda.current_stream(self._gpu))
        yield
        end.record(torch.cuda.current_stream(self._gpu))
        self._events.append((name, begin, end))

    def take(self, *names: str) -> dict[str, float]:
        """Return the seconds of each name since they were last taken."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        return {name: self._seconds.pop(name, 0.0) for name in names}

    def peak_memory_gb(self) -> float:
        """Return the peak memory in 10⁹ bytes: of the GPU's allocator, or of the process without a GPU."""
        if self._gpu is not None:
            return torch.cuda.max_memory_allocated(self._gpu) / _GB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GB
