"""A pseudorandom permutation in constant memory: the shuffled place of each index is computed, not stored.

An index is a pair (row, column) of a table of about sqrt(size) rows and columns. A Feistel network adds, in turn, a
pseudorandom function of the column to the row and one of the row to the column, each modulo its range, which is a
bijection of the table. An index in the table's few surplus places is permuted again until it is not (cycle walking).
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""What SplitMix64 adds before :func:`mixed`, so that 0 is not mapped to 0."""


@dataclass(frozen=True)
class Permutation:
    """A permutation of [0, ``size``) that depends on ``seed``, the same on every machine."""

    size: int
    """Number of elements, up to 2^60."""
    seed: tuple[int, ...]
    """Integers that select the permutation."""

    def __call__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the image of each index: int64, of the same shape. Indices are in [0, ``size``)."""
        images = self._permute(indices.astype(np.uint64))
        while (outside := images >= self.size).any():
            images[outside] = self._permute(images[outside])
        return images.astype(np.int64)

    def _permute(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        rows = np.uint64(isqrt(self.size - 1) + 1)
        columns = np.uint64(-(-self.size // int(rows)))
        row, column = values // columns, values % columns
        for number, key in enumerate(np.random.SeedSequence(self.seed).generate_state(_ROUNDS, np.uint64)):
            if number % 2:
                column = (column + mixed(row ^ key) % columns) % columns
            else:
                row = (row + mixed(column ^ key) % rows) % rows
        return row * columns + column


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood 2014) of each value, which mixes all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
