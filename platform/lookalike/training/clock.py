"""Where the time and the memory of a step go."""

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GB = 10**9


class StepClock:
    """Seconds by what they were spent on, and the peak of this process's memory on its device."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the seconds of the body to ``name``. On a GPU those from the end of what was queued before it to the end
        of what it queues: nobody waits for them before they are taken."""
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

    def take(self, *names: str) -> list[float]:
        """Seconds of each name since they were last taken."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        return [self._seconds.pop(name, 0.0) for name in names]

    def peak_memory_gb(self) -> float:
        """Most bytes ever held, in 10⁹: of the GPU's allocator, else of the process."""
        if self._gpu is not None:
            return torch.cuda.max_memory_allocated(self._gpu) / _GB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GB
