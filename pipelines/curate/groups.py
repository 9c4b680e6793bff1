"""The subjects of a table of image rows, in batches of those with the same number of photos."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.filters import Photos

_BATCH_BYTES = 64 << 20  # of the embeddings and similarities of subjects that are compared at once
_PAIR_BYTES, _DIMENSION_BYTES = 24, 8  # of two photos, and of one dimension of an embedding, while they are compared

# Legend: N rows, G subjects, K kept rows.


@dataclass(frozen=True)
class Groups:
    """The subjects of a table, and the rows of each that are kept by filters that see one image."""

    names: pa.Array
    """Name of each subject: string [G]."""
    starts: np.ndarray
    """First row of each subject."""
    group_of: np.ndarray
    """Number of each row's subject."""
    kept: np.ndarray
    """The rows that are kept."""
    counts: np.ndarray
    """Kept rows of each subject."""

    @classmethod
    def of(cls, rows: pa.Table, kept_N: np.ndarray) -> "Groups":
        """Group contiguous rows: subjects of equal hashes remain different."""
        names, first_N = rows["subject"].combine_chunks(), np.ones(len(rows), bool)
        if len(rows):
            first_N[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
        group_N, kept_K = np.cumsum(first_N) - 1, np.flatnonzero(kept_N)
        start_G = np.flatnonzero(first_N)
        count_G = np.bincount(group_N[kept_K], minlength=len(start_G))
        return cls(names.take(pa.array(start_G)), start_G, group_N, kept_K, count_G)

    def batches(self, photos: Photos) -> Iterator[list[Photos]]:
        """Yield the kept photos of a few subjects at a time, to bound memory; subjects with few photos come first."""
        count_G, first_G = self.counts, np.cumsum(self.counts) - self.counts
        order = np.argsort(count_G, kind="stable")
        order = order[count_G[order] > 0]
        dimensions = 0 if photos.vectors is None else photos.vectors.shape[1]
        size = count_G[order] * (count_G[order] * _PAIR_BYTES + dimensions * _DIMENSION_BYTES)
        ends, done = np.cumsum(size), 0
        while done < len(order):
            before = ends[done] - size[done]
            end = max(done + 1, int(np.searchsorted(ends, before + _BATCH_BYTES, side="right")))
            subjects, counts = order[done:end], count_G[order[done:end]]
            yield [
                Photos(
                    photos.rows,
                    self.kept[first_G[subjects[counts == number], None] + np.arange(number)],
                    photos.vectors,
                    photos.columns,
                )
                for number in np.unique(counts)
            ]
            done = end
