"""The promotion log: who is champion, decided by conditional puts. MLflow's alias is a projection of it.

Setting an alias is no compare-and-set and keeps no history. So each promotion of a model is an object with the next
number, created only if it is not there: of two promotions at a time one wins, and the other has to look again.
"""

import json
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from lookalike.config import canonical_json
from lookalike.storage import Store

LOG_TAG = "promotion_log"


@dataclass(frozen=True)
class Promotion:
    """One entry."""

    number: int
    """1, 2, 3, …"""
    version: int
    """The model version that became champion."""
    bundle_sha256: str
    """Its bundle."""
    scores_sha256: str
    """Hash of the scores that it was judged by."""
    champion_before: int | None
    """The version that it followed."""
    checks: list[dict[str, Any]]
    """What the gate looked at, see :class:`lookalike.evaluation.gate.Check`."""
    time: str
    """When, in UTC (ISO 8601)."""
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Makes every entry unlike any other, so that a writer can tell its own."""


class PromotionLog:
    """The log of one registered model, below ``store``."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store.child(name)

    def entries(self) -> list[Promotion]:
        """All promotions, oldest first."""
        return [self._read(info.key) for info in self._store.list()]

    def last(self) -> Promotion | None:
        """The newest promotion: the champion."""
        keys = [info.key for info in self._store.list()]
        return self._read(keys[-1]) if keys else None

    def append(self, promotion: Promotion) -> None:
        """Add the entry. Raises ConflictError if another promotion took its number."""
        self._store.create(f"{promotion.number:08d}.json", canonical_json(asdict(promotion)).encode())

    def _read(self, key: str) -> Promotion:
        return Promotion(**json.loads(self._store.read(key)))
