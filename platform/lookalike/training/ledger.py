"""The ledger: which samples each step was trained on, so that "each exactly once" can be checked after restarts.

``ledger/step-00000120.2.jsonl`` is written with the checkpoint after 120 steps under lease 2. It has one line for each
step since the previous checkpoint: ``{"step": 119, "epoch": 3, "samples": [ids in the order of the plan's slots]}``. If
a slot's sample could not be prepared, it also has ``"quarantined": [{"sample": id, "slot": 7, "reason": "…"}]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lookalike.documents import render_lines
from lookalike.storage import Store, read_lines
from lookalike.training.marks import Mark, current, parse_mark
from lookalike.training.quarantine import Failure
from lookalike.training.ranks import Rank

LEDGER = "ledger"


@dataclass(frozen=True)
class Ledger:
    """This rank's part of the ledger; :meth:`take` joins the parts of all ranks."""

    rank: Rank
    _steps: list[tuple[int, int, list[str], list[Failure]]] = field(default_factory=list)

    def add(self, step: int, epoch: int, sample_ids: list[str], failed: Sequence[Failure] = ()) -> None:
        """Record the samples, without padding, that this rank's forward passes of ``step`` used, and failures."""
        self._steps.append((step, epoch, sample_ids, list(failed)))

    def take(self) -> bytes:
        """Return the lines of all steps since the last call, on the first rank; a collective."""
        parts = self.rank.gather(list(self._steps))
        self._steps.clear()
        lines = []
        for shares in zip(*parts, strict=True):
            step, epoch, *_ = shares[0]
            assert all(share[:2] == (step, epoch) for share in shares), "ranks recorded different steps"
            samples = [sample_id for share in shares for sample_id in share[2]]
            failed = [failure.record() for share in shares for failure in share[3]]
            lines.append(
                {"step": step, "epoch": epoch, "samples": samples} | ({"quarantined": failed} if failed else {})
            )
        return render_lines(lines)


def ledger_key(step: int, lease: int = 1) -> str:
    """Return the key of the part that is written with the checkpoint after ``step`` steps under ``lease``."""
    return f"{LEDGER}/{Mark(step, lease)}.jsonl"


def recorded(store: Store) -> list[Mark]:
    """Return the marks of all parts of a run's ledger, also of invalid ones."""
    names = (info.key.removeprefix(f"{LEDGER}/").removesuffix(".jsonl") for info in store.list(f"{LEDGER}/"))
    return [mark for name in names if (mark := parse_mark(name))]


def remove_ledger_after(store: Store, step: int) -> None:
    """Remove what an earlier attempt recorded after ``step``: those steps are repeated."""
    for mark in recorded(store):
        if mark.step > step:
            store.delete(ledger_key(mark.step, mark.lease))


def read_ledger(store: Store) -> list[dict[str, Any]]:
    """Read the records of a run in the order of its steps, without those of a process whose lease was lost."""
    return [
        record for mark in current(recorded(store)) for record in read_lines(store, ledger_key(mark.step, mark.lease))
    ]
