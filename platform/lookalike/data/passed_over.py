"""What was found and is not read: counted by reason, with the names of a few."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lookalike.data.text import escaped

EXAMPLES = 5  # names kept of each reason, however many there are
_NAME_LENGTH = 200  # characters kept of a name


@dataclass
class PassedOver:
    """How many things were found in one place, and which of them are not read, by reason.

    The size does not depend on how much was found: reasons are few, and of each only :data:`EXAMPLES` names are kept.
    """

    found: int = 0
    """Everything that was there, read or not."""
    counts: Counter[str] = field(default_factory=Counter)
    """Things that are not read, by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Names of the first of each reason."""

    @property
    def read(self) -> int:
        """How many of the things found are read."""
        return self.found - self.counts.total()

    def add(self, reason: str, name: str) -> None:
        """Count one thing that is not read; :attr:`found` is counted apart."""
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(escaped(name[:_NAME_LENGTH]))

    def merge(self, other: "PassedOver") -> None:
        """Add the counts and examples of another place."""
        self.found += other.found
        self.counts.update(other.counts)
        for reason, names in other.examples.items():
            own = self.examples.setdefault(reason, [])
            own += names[: EXAMPLES - len(own)]

    def to_json(self) -> dict[str, Any]:
        """``{found, read, reasons: {reason: {count, examples}}}``."""
        reasons = {
            reason: {"count": count, "examples": self.examples.get(reason, [])}
            for reason, count in sorted(self.counts.items())
        }
        return {"found": self.found, "read": self.read, "reasons": reasons}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PassedOver":
        """The reverse of :meth:`to_json`."""
        reasons = values["reasons"]
        return cls(
            values["found"],
            Counter({reason: each["count"] for reason, each in reasons.items()}),
            {reason: list(each["examples"]) for reason, each in reasons.items()},
        )
