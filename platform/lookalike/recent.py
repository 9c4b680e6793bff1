"""A bounded memory of expensive results, for a process that does many similar things, such as a fleet of finetunes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Recent(Generic[_T]):
    """The results that were used last, each by a key that names everything it depends on. Threads may share it.

    Results are shared between callers, which must not modify them.
    """

    def __init__(self, most: int) -> None:
        """Keep at most ``most`` results."""
        self._most, self._kept, self._lock = most, OrderedDict[Hashable, _T](), threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return the result of ``key``, by ``make()`` if it is not kept; what ``make`` raises is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # two threads may make one at once: they must not wait for each other's keys
        with self._lock:
            kept = self._kept.setdefault(key, made)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return kept

    def clear(self) -> None:
        """Forget all results."""
        with self._lock:
            self._kept.clear()
