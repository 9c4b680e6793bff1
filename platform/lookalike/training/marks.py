"""Names of what is written at a step of a run: ``step-00000120.2`` is by the holder of lease 2, after 120 steps.

A process that was stopped, while another took its run over, may write when it continues. It writes under other names
than its successor, and readers ignore it (:func:`current`). The first holder writes no number: ``step-00000120``. Nor
did earlier versions of this software, whose successor has a later lease.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = re.compile(r"^step-(\d{8,})(?:\.(\d+))?$")


@dataclass(frozen=True, order=True)
class Mark:
    """A step, and the lease of the process that recorded it."""

    step: int
    lease: int = 1

    def __str__(self) -> str:
        return f"step-{self.step:08d}" + (f".{self.lease}" if self.lease > 1 else "")


def parse_mark(name: str) -> Mark | None:
    """The mark that is written as ``name``; None for another name."""
    match = _NAME.match(name)
    return Mark(int(match[1]), int(match[2] or 1)) if match else None


def current(marks: Iterable[Mark]) -> list[Mark]:
    """The marks that count, ascending: none after the first one of a later lease, and one of each step.

    >>> current([Mark(20, 1), Mark(40, 1), Mark(60, 1), Mark(40, 2)])  # lease 2 resumed at step 20
    [Mark(step=20, lease=1), Mark(step=40, lease=2)]
    """
    latest_at = {mark.step: mark for mark in sorted(marks)}
    result: list[Mark] = []
    for mark in latest_at.values():
        if not result or mark.lease >= result[-1].lease:
            result.append(mark)
    return result
