"""Names of what a run writes at a step: ``step-00000120.2`` is written after 120 steps by the holder of lease 2.

A process that was suspended while another took over its run may still write when it continues. It writes under other
names than its successor, and readers ignore these (:func:`current`). The first holder writes no number
(``step-00000120``), and neither did earlier versions of this software.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = re.compile(r"^step-(\d{8,})(?:\.(\d+))?$")


@dataclass(frozen=True, order=True)
class Mark:
    """A step, and the lease of the process that wrote it."""

    step: int
    lease: int = 1

    def __str__(self) -> str:
        return f"step-{self.step:08d}" + (f".{self.lease}" if self.lease > 1 else "")


def parse_mark(name: str) -> Mark | None:
    """Parse a mark from ``name``; None for other names."""
    match = _NAME.match(name)
    return Mark(int(match[1]), int(match[2] or 1)) if match else None


def current(marks: Iterable[Mark]) -> list[Mark]:
    """Return the valid marks, ascending: of each step the one of the latest lease, and none of an older lease after it.

    >>> current([Mark(20, 1), Mark(40, 1), Mark(60, 1), Mark(40, 2)])  # lease 2 resumed at step 20
    [Mark(step=20, lease=1), Mark(step=40, lease=2)]
    """
    latest_at = {mark.step: mark for mark in sorted(marks)}
    result: list[Mark] = []
    for mark in latest_at.values():
        if not result or mark.lease >= result[-1].lease:
            result.append(mark)
    return result
