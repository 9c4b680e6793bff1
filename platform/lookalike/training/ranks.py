"""A rank: this process among those that train together, and the collectives that the loop needs."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Rank:
    """Index of this process and number of processes."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all ranks computed."""
        return self.index == 0

    def sum(self, *values: float) -> list[float]:
        """Sum each value over all ranks; a collective."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
        return [float(value) for value in total]

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of each rank in order on the first rank, an empty list on the others. A collective."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(value, values)
        return values or []
