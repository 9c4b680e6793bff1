"""Cells: a fixed division of the space of vectors into regions of about as many photos each, in two levels.

K cells around k-means centroids are found as √K coarse cells that are divided again, so that a vector is compared with
about 5 √K centroids, not with K: at a billion photos with 700, not with 20,000.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.curate.tables import vectors_array, vectors_of

# Legend: N vectors, D dimensions, C coarse cells, K cells.

_ITERATIONS = 10
_PER_CENTROID = 256  # vectors of the sample that a centroid is computed from, if there are so many
_PROBED = 4  # coarse cells whose cells a vector is compared with
_BLOCK = 8192  # vectors that are compared at once


@dataclass(frozen=True, eq=False)
class Cells:
    """The centroids of both levels."""

    coarse: np.ndarray
    """Centroids of the coarse cells, unit norm, float32 [C, D]."""
    fine: np.ndarray
    """Centroids of the cells, unit norm, by coarse cell, float32 [K, D]."""
    first: np.ndarray
    """First cell of each coarse cell, and K: int64 [C + 1]."""

    @classmethod
    def of_sample(cls, vectors_ND: np.ndarray, cells: int, seed: int) -> "Cells":
        """Divide a sample of unit-norm vectors, float16 or float32 [N, D], into about ``cells`` cells, at most N.

        Coarse cells get cells by their share of the sample. An empty sample gives one cell.
        """
        cells = max(1, min(cells, len(vectors_ND)))
        coarse_CD = _centroids(vectors_ND, int(np.ceil(np.sqrt(cells))), seed)
        coarse_N = _nearest(vectors_ND, coarse_CD)
        ends_C = np.cumsum(np.bincount(coarse_N, minlength=len(coarse_CD)))
        wanted_C = np.diff(np.round(ends_C * (cells / max(1, len(vectors_ND)))), prepend=0).astype(int)
        parts = []
        for number, wanted in enumerate(wanted_C):
            members = vectors_ND[coarse_N == number]
            k = min(int(wanted), len(members))
            parts.append(_centroids(members, k, seed) if k > 1 else coarse_CD[number : number + 1])
        return cls(coarse_CD, np.concatenate(parts), np.cumsum([0, *map(len, parts)]))

    def __len__(self) -> int:
        return len(self.fine)

    def assign(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return the cell of each unit-norm vector [N, D], int64 [N]: the most similar in four coarse cells.

        With the nearest one alone 28 of 100 pairs of a subject were in one of 200 cells, with four 33, and with a
        single level 37 (vectors in random directions, .8 in a subject).
        """
        cells_N, similarity_N = np.zeros(len(vectors_ND), np.int64), np.full(len(vectors_ND), -np.inf, np.float32)
        for first in range(0, len(vectors_ND), _BLOCK):
            block = slice(first, first + _BLOCK)
            self._assign(vectors_ND[block], cells_N[block], similarity_N[block])
        return cells_N

    def _assign(self, vectors_BD: np.ndarray, cells_B: np.ndarray, similarity_B: np.ndarray) -> None:
        """Set the most similar cell of each vector of a block, and the similarity."""
        coarse_BC = vectors_BD @ self.coarse.T
        probed = np.argsort(-coarse_BC, axis=1, kind="stable")[:, :_PROBED]
        for number in np.unique(probed):
            members = np.flatnonzero((probed == number).any(axis=1))
            fine = self.fine[self.first[number] : self.first[number + 1]]
            products = vectors_BD[members] @ fine.T
            best = products.argmax(axis=1)
            similarity = products[np.arange(len(members)), best]
            better = similarity > similarity_B[members]
            cells_B[members[better]] = self.first[number] + best[better]
            similarity_B[members[better]] = similarity[better]

    def to_table(self) -> pa.Table:
        """The centroids as a table; those of coarse cells come first, with ``coarse`` -1."""
        coarse = np.repeat(np.arange(len(self.coarse)), np.diff(self.first))
        numbers = np.concatenate([np.full(len(self.coarse), -1), coarse])
        vectors = vectors_array(np.concatenate([self.coarse, self.fine]))
        return pa.table([pa.array(numbers, pa.int32()), vectors], ["coarse", "vector"])

    @classmethod
    def from_table(cls, table: pa.Table) -> "Cells":
        """Read what :meth:`to_table` has written."""
        numbers, vectors = table["coarse"].to_numpy(), vectors_of(table["vector"])
        coarse = int((numbers < 0).sum())
        first = np.searchsorted(numbers[coarse:], np.arange(coarse + 1))
        return cls(vectors[:coarse], vectors[coarse:], first)


def _centroids(vectors_ND: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return k centroids of unit norm, float32 [k, D], by spherical k-means.

    The result is the same at each call on machines with the same instruction set: the seed is fixed, and faiss uses one
    thread.
    """
    if k <= 1:
        count = max(1, len(vectors_ND))
        return _unit_norm(vectors_ND.sum(axis=0, dtype=np.float64, keepdims=True) / count)
    import faiss

    chosen = np.linspace(0, len(vectors_ND), min(len(vectors_ND), _PER_CENTROID * k), endpoint=False).astype(np.int64)
    settings = {"niter": _ITERATIONS, "seed": seed % (1 << 31), "spherical": True, "min_points_per_centroid": 1}
    with one_thread():
        kmeans = faiss.Kmeans(vectors_ND.shape[1], k, **settings)
        kmeans.train(vectors_ND[chosen].astype(np.float32))
    return _unit_norm(np.asarray(kmeans.centroids))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let faiss use one thread, so that its float sums are in one order."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _unit_norm(vectors_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.where(norms_N1 == 0, 1, norms_N1), np.float32)


def _nearest(vectors_ND: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    """Return the most similar centroid of each vector, int64 [N]."""
    parts = [
        (vectors_ND[first : first + _BLOCK].astype(np.float32) @ centroids_KD.T).argmax(axis=1)
        for first in range(0, len(vectors_ND), _BLOCK)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
