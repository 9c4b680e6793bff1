"""End the lease of a run or a data set if its holder cannot: its record is damaged, or its machine is lost.

A lease ends by itself a minute after its holder's last heartbeat; use this command if an error names it. A holder that
still works stops, and loses what it has not committed.

  python jobs/break_lease.py --lease file:///runs/toys-1/lease
"""

from lookalike.storage import open_store
from lookalike.storage.lease import break_lease
from lookalike.values import configuration
from pipelines.entry import run_job


@configuration()
class BreakLeaseConfig:
    """The lease to end."""

    lease: str
    """URI of the folder with the lease, as the error shows it."""


def main(config: BreakLeaseConfig) -> int:
    """Break the lease, and print its holder."""
    broken = break_lease(open_store(config.lease))
    print(f"there is no lease at {config.lease}" if broken is None else f"broken: {broken}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(BreakLeaseConfig, main, __doc__))
