"""What a filter is, and the columns it judges by."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from lookalike.annotators.base import Scorer

Scope = Literal["image", "content", "score", "subject"]
"""What a filter must see together: one image, all images with the same bytes, one image and what a model says of it, or
all images of one subject."""

SCORE = "score"
"""Column that a filter of scope ``score`` sees besides: its scorer's number, NaN where the image got none."""


@dataclass(frozen=True)
class Photos:
    """N photographs that are judged together: their rows, and their embeddings where the scope is ``subject``."""

    rows: pa.Table
    """Columns of :data:`pipelines.curate.rows.IMAGE_SCHEMA`, N rows in the order of (shard, offset)."""
    vectors: np.ndarray | None = None
    """Unit-norm float32 embeddings [N, D]."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> np.ndarray:
        """A column as a NumPy array of N values."""
        return np.asarray(self.rows[column].to_numpy(zero_copy_only=False))

    @property
    def contents(self) -> np.ndarray:
        """int32 [N]: a number for each content, so that files are equal where the numbers are."""
        encoded = self.rows["sha256"].combine_chunks().dictionary_encode()
        return np.asarray(encoded.indices.to_numpy(zero_copy_only=False))

    @cached_property
    def similarity(self) -> np.ndarray:
        """Cosine similarities, float32 [N, N], rounded to 0.001.

        Embeddings differ in their last digits from one machine to another; rounded, a threshold decides the same.
        """
        if self.vectors is None:
            raise AssertionError("only filters of scope 'subject' see embeddings")
        return np.asarray(np.round(self.vectors @ self.vectors.T, 3), np.float32)

    def take(self, keep: np.ndarray) -> "Photos":
        """The photos where ``keep`` (bool [N]) is true."""
        if keep.all():
            return self
        vectors = None if self.vectors is None else self.vectors[keep]
        return Photos(self.rows.filter(pa.array(keep)), vectors)


class Filter(Protocol):
    """A step of curation: frozen settings and one method. Its name in ``FiltersConfig.steps`` is its reason."""

    scope: ClassVar[Scope]

    def drop(self, photos: Photos) -> np.ndarray:
        """Which photos to drop: bool [N]."""


@runtime_checkable
class ScoreFilter(Filter, Protocol):
    """A filter of scope ``score``. Its model sees only what the filters before it have left."""

    @property
    def scorer(self) -> Scorer | None:
        """The model that it asks; None: it judges by what the rows say."""

    def asks(self, photos: Photos) -> np.ndarray:
        """Which photos it needs a score of: bool [N]."""
