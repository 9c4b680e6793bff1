"""A few triplets of all similarities, chosen by hash, so that the choice can be joined over parts of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate.rows import unit_hash

_STEP = 0.05  # of similarity
_SHOWN = 2  # maximum triplets of each step


class Examples:
    """The chosen triplets of the parts that were added, in any order of the parts."""

    def __init__(self) -> None:
        self.chosen: dict[str, list[dict[str, Any]]] = {}
        """Rows of the triplet table by their step of similarity, which JSON can hold."""

    def add(self, table: pa.Table) -> None:
        """Add the triplets of a part."""
        by_step: dict[str, list[int]] = {}
        for index, values in enumerate(table["reference_similarities"].to_pylist()):
            by_step.setdefault(str(int(float(np.mean(values)) / _STEP)), []).append(index)
        ids = table["triplet_id"].to_pylist()
        for step, indices in by_step.items():
            first = sorted(indices, key=lambda index: _order(ids[index]))[:_SHOWN]
            self._keep(step, table.take(pa.array(first)).to_pylist())

    def merge(self, chosen: Mapping[str, Sequence[dict[str, Any]]]) -> None:
        """Add what was chosen from other parts."""
        for step, rows in chosen.items():
            self._keep(step, rows)

    def rows(self) -> list[dict[str, Any]]:
        """The chosen triplets, by similarity."""
        rows = [row for _, rows in sorted(self.chosen.items(), key=lambda item: int(item[0])) for row in rows]
        return sorted(rows, key=lambda row: float(np.mean(row["reference_similarities"])))

    def _keep(self, step: str, rows: Sequence[dict[str, Any]]) -> None:
        rows = [*self.chosen.get(step, []), *rows]
        self.chosen[step] = sorted(rows, key=lambda row: _order(row["triplet_id"]))[:_SHOWN]


def _order(triplet_id: str) -> tuple[float, str]:
    return unit_hash("shown", triplet_id), triplet_id
