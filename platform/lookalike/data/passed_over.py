"""Count the things that are not read, by reason, with a few names of each."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lookalike.data.text import escaped

EXAMPLES = 5  # names that are kept for each reason
_NAME_LENGTH = 200  # characters that are kept of a name


@dataclass
class PassedOver:
    """The number of things in one place, and of those that are not read, by reason.

    Its size is bounded: there are few reasons, and :data:`EXAMPLES` names are kept for each.
    """

    found: int = 0
    """Number of all things, read or not."""
    counts: Counter[str] = field(default_factory=Counter)
    """Number of things that are not read, by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first names of each reason."""

    @property
    def read(self) -> int:
        """Number of the things that are read."""
        return self.found - self.counts.total()

    def add(self, reason: str, name: str) -> None:
        """Count one thing that is not read. The caller counts :attr:`found`."""
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
        """Return ``{found, read, reasons: {reason: {count, examples}}}``."""
        reasons = {
            reason: {"count": count, "examples": self.examples.get(reason, [])}
            for reason, count in sorted(self.counts.items())
        }
        return {"found": self.found, "read": self.read, "reasons": reasons}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PassedOver":
        """Parse the result of :meth:`to_json`."""
        reasons = values["reasons"]
        return cls(
            values["found"],
            Counter({reason: each["count"] for reason, each in reasons.items()}),
            {reason: list(each["examples"]) for reason, each in reasons.items()},
        )
