"""The interface of a filter, and the photos that it sees."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from lookalike.annotators.base import Scorer

Scope = Literal["image", "content", "score", "subject"]
"""What a filter sees at once: one image, all images with the same bytes, one image with the score that a model gives
it, or all images of one subject."""

SCORE = "score"
"""Additional column that a filter of scope ``score`` sees: its scorer's number, NaN if the image has none."""

Trait = Literal["can_skip", "compares_embeddings", "hides_photos"]
"""``can_skip``: ``filters.skip`` may name it. ``compares_embeddings``: it needs an embedder, and the report shows kept
photos of the subject beside the dropped ones. ``hides_photos``: the report does not show what it drops."""


@dataclass(frozen=True)
class Photos:
    """N photos that a filter sees at once: their rows, and their embeddings if the scope is ``subject``."""

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
        """A number for each photo, int32 [N]; two photos have the same number if their files have the same bytes."""
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
        """Return the photos for which ``keep`` (bool [N]) is true."""
        if keep.all():
            return self
        vectors = None if self.vectors is None else self.vectors[keep]
        return Photos(self.rows.filter(pa.array(keep)), vectors)


def with_scores(rows: pa.Table, scores: Mapping[str, float]) -> Photos:
    """Return the rows with a column of their scores, which are given by content hash; NaN for a row without one."""
    values = [scores.get(content, float("nan")) for content in rows["sha256"].to_pylist()]
    return Photos(rows.append_column(SCORE, pa.array(values, pa.float64())))


class Filter(Protocol):
    """A filter: a frozen dataclass of its settings. The attribute of ``FiltersConfig`` that holds it is its reason."""

    scope: ClassVar[Scope]
    summary: ClassVar[str]
    """What it drops, for the report."""
    traits: ClassVar[tuple[Trait, ...]]

    def drop(self, photos: Photos) -> np.ndarray:
        """Return which photos to drop: bool [N]."""


@runtime_checkable
class ScoreFilter(Filter, Protocol):
    """A filter of scope ``score``. Its model sees only the images that the filters before it have kept."""

    @property
    def scorer(self) -> Scorer | None:
        """The model that gives the score; None if the filter uses the rows alone."""

    def asks(self, photos: Photos) -> np.ndarray:
        """Return which photos need a score: bool [N]."""
