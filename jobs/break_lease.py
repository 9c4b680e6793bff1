"""End the lease of a run or a data set whose holder does not end it: its record is broken, or its machine is gone.

A lease ends by itself a minute after its holder was last heard of; this is for when the error names this command. A
holder that still works loses what it has not committed, and stops.

  python jobs/break_lease.py --lease file:///runs/toys-1/lease
"""

from dataclasses import dataclass

from lookalike.storage import open_store
from lookalike.storage.lease import break_lease
from pipelines.entry import run_job


@dataclass(frozen=True)
class BreakLeaseConfig:
    """Which lease."""

    lease: str
    """URI of the folder with the lease, as the error shows it."""


def main(config: BreakLeaseConfig) -> int:
    """Break the lease, and print whose it was."""
    broken = break_lease(open_store(config.lease))
    print(f"there is no lease at {config.lease}" if broken is None else f"broken: {broken}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(BreakLeaseConfig, main, __doc__))
