"""The quarantine: samples that a run leaves out because they cannot be read or prepared, counted and limited."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lookalike.documents import render_lines
from lookalike.errors import InputError, LookalikeError
from lookalike.storage import Store, read_lines
from lookalike.training.ranks import Rank

log = logging.getLogger(__name__)

QUARANTINE = "quarantine.jsonl"
_NAMED = 5  # samples in an error message
_VALIDATION = -1  # the step of held-out samples, which are prepared before the first one


class UnusableDataError(InputError):
    """Data that ends the run. Every rank raises it after the same step; a restart would repeat it."""


@dataclass(frozen=True)
class Failure:
    """One slot of a step whose sample could not be prepared."""

    sample: str
    """Id of the sample."""
    slot: int
    """Its place in the step's batch."""
    reason: str
    """What is wrong with the sample."""
    fatal: bool = False
    """Whether the whole shard cannot be read, so that the run ends. ``reason`` is then [what, value, fix] as JSON."""

    def record(self) -> dict[str, Any]:
        """Return the failure as the ledger records it."""
        return {"sample": self.sample, "slot": self.slot, "reason": self.reason}


def failures(columns: Mapping[str, Any], first_slot: int) -> list[Failure]:
    """Return the failures among prepared columns whose first row has slot ``first_slot``."""
    if "reason" not in columns:
        return []
    rows = zip(columns["sample_id"], columns["reason"], columns["fatal"], strict=True)
    return [
        Failure(str(sample), first_slot + row, str(reason), bool(fatal))
        for row, (sample, reason, fatal) in enumerate(rows)
        if reason
    ]


class Quarantine:
    """Records each sample that a run leaves out once; the first rank has those of all ranks.

    ``quarantine.jsonl`` of the run has a line for each: sample, step and slot of its first appearance (step -1: held
    out), reason. The ledger has every appearance. At most ``limit`` samples may be left out.
    """

    def __init__(self, store: Store, rank: Rank, limit: int) -> None:
        self._store, self._rank, self._limit = store, rank, limit
        self._samples: dict[str, dict[str, Any]] = {}

    def restart_at(self, step: int) -> None:
        """Read what an earlier attempt left out before ``step``, and drop its later records."""
        if not self._rank.is_first or not self._store.exists(QUARANTINE):
            return
        for record in read_lines(self._store, QUARANTINE, "sample", "step"):
            if record["step"] < step:
                self._samples.setdefault(record["sample"], record)
        self._store.write(QUARANTINE, self.encoded())

    def add(self, step: int, found: Sequence[Failure], total: int) -> None:
        """Record this rank's failures of ``step``, of ``total`` on all ranks. A collective, unless ``total`` is 0.

        Raises UnusableDataError on every rank if a shard cannot be read, or the limit is exceeded.
        """
        if total == 0:
            return
        everywhere = [failure for part in self._rank.gather(list(found)) for failure in part]
        for failure in everywhere:
            if not failure.fatal and failure.sample not in self._samples:
                self._samples[failure.sample] = {"sample": failure.sample, "step": step, **failure.record()}
                which = "held-out sample" if step == _VALIDATION else f"step {step}: sample"
                count = f"{len(self._samples)} of at most {self._limit}"
                log.warning("%s %s is left out: %s (%s)", which, failure.sample, failure.reason, count)
        broken = [failure for failure in everywhere if failure.fatal]
        ends = float(bool(broken) or len(self._samples) > self._limit)
        if self._rank.sum(ends)[0] == 0:
            return
        if self._rank.is_first:
            self._store.write(QUARANTINE, self.encoded())
        raise self._error(broken)

    def add_held_out(self, found: Sequence[Failure], readable: int) -> None:
        """Record failures among the validation samples of this rank, ``readable`` of which can be used. A collective.

        Raises UnusableDataError on every rank as :meth:`add`, or if no validation sample of any rank can be read.
        """
        total, usable = self._rank.sum(float(len(found)), float(readable))
        self.add(_VALIDATION, found, int(total))
        if total and not usable:
            raise UnusableDataError(
                "no validation sample can be read",
                value=self._store.uri_of(QUARANTINE),
                fix="repair the snapshot, or set validation.samples=0",
            )

    def encoded(self) -> bytes:
        """Return ``quarantine.jsonl`` as of now; empty if nothing was left out."""
        return render_lines(self._samples.values())

    def _error(self, broken: Sequence[Failure]) -> LookalikeError:
        if broken:
            what, value, fix = json.loads(broken[0].reason)
            return UnusableDataError(what, value=value, fix=fix)
        named = "; ".join(f"{r['sample']}: {r['reason']}" for r in list(self._samples.values())[:_NAMED])
        return UnusableDataError(
            f"{len(self._samples)} samples cannot be read or prepared, {self._limit} may be left out: {named}",
            value=self._store.uri_of(QUARANTINE),
            fix="repair the samples listed in that file, or raise safety.max_quarantined and "
            "safety.max_quarantined_share; the same command resumes from the last checkpoint",
        )
