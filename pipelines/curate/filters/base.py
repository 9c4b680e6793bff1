"""The interface of a filter, and the photos that it sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from lookalike.annotators.base import Scorer

Scope = Literal["image", "content", "score", "subject"]
"""What a filter sees at once: one image, all images with the same bytes, one image with the score that a model gives
it, or all images of subjects that have the same number of images."""

SCORE = "score"
"""Additional column that a filter of scope ``score`` sees: its scorer's number, NaN if the image has none."""

Trait = Literal["can_skip", "compares_embeddings", "hides_photos"]
"""``can_skip``: ``filters.skip`` may name it. ``compares_embeddings``: it needs an embedder, and the report shows kept
photos of the subject beside the dropped ones. ``hides_photos``: the report does not show what it drops."""


# Legend: N photos of one subject, B subjects, D dimensions, R rows of a table.


@dataclass(frozen=True)
class Photos:
    """The photos that a filter sees at once, by their rows in a table.

    They are N photos, or in scope ``subject`` B subjects of N photos each: all arrays have the shape [N], or [B, N].
    """

    rows: pa.Table
    """Columns of :data:`pipelines.curate.rows.IMAGE_SCHEMA`, R rows."""
    index: np.ndarray | None = None
    """Row of each photo: int [N] or [B, N], in the order of (shard, offset) within a subject; None: the photos are all
    R rows."""
    vectors: np.ndarray | None = None
    """Embeddings of the rows, float16 or float32 [R, D], of any norm; None unless the scope is ``subject``."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns [R] beside those of the table, and those that were read before; shared by all photos of the table."""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N,), or (B, N) in scope ``subject``."""
        return (len(self.rows),) if self.index is None else self.index.shape

    def __getitem__(self, column: str) -> np.ndarray:
        """A column as a NumPy array of the shape of the photos."""
        if column not in self.columns:
            self.columns[column] = np.asarray(self.rows[column].to_numpy(zero_copy_only=False))
        return self._of_photos(self.columns[column])

    @property
    def contents(self) -> np.ndarray:
        """A number for each photo, int32; two photos have the same number if their files have the same bytes."""
        if _CONTENTS not in self.columns:
            encoded = self.rows["sha256"].combine_chunks().dictionary_encode()
            self.columns[_CONTENTS] = np.asarray(encoded.indices.to_numpy(zero_copy_only=False))
        return self._of_photos(self.columns[_CONTENTS])

    @cached_property
    def similarity(self) -> np.ndarray:
        """Cosine similarities of the photos of each subject, float32 [B, N, N], rounded to 0.001; 0 for a zero vector.

        Embeddings differ in their last digits from one machine to another; rounded, a threshold decides the same.
        """
        if self.vectors is None or self.index is None:
            raise AssertionError("only filters of scope 'subject' see embeddings")
        vectors_BND = self.vectors[self.index].astype(np.float32)
        norms_BN1 = np.linalg.norm(vectors_BND, axis=2, keepdims=True)
        vectors_BND /= np.where(norms_BN1 == 0, 1, norms_BN1)
        similarity_BNN = vectors_BND @ vectors_BND.swapaxes(1, 2)
        return np.asarray(np.round(similarity_BNN, 3, out=similarity_BNN))

    def split(self, keep: np.ndarray) -> list["Photos"]:
        """Return the photos for which ``keep`` (bool [B, N]) is true, the subjects with the same number together."""
        if keep.all():
            return [self]
        assert self.index is not None, "only photos of subjects are split"
        left_B = keep.sum(axis=1)
        parts = []
        for number in np.unique(left_B[left_B > 0]):
            subjects = np.flatnonzero(left_B == number)
            places_BM = np.nonzero(keep[subjects])[1].reshape(len(subjects), number)
            part = replace(self, index=np.take_along_axis(self.index[subjects], places_BM, axis=1))
            if "similarity" in self.__dict__:
                across = self.similarity[subjects[:, None, None], places_BM[:, :, None], places_BM[:, None, :]]
                part.__dict__["similarity"] = across
            parts.append(part)
        return parts

    @staticmethod
    def join(parts: Sequence["Photos"]) -> list["Photos"]:
        """Return photos of the same table with those of the same number N in one."""
        by_number: dict[int, list[Photos]] = {}
        for part in parts:
            by_number.setdefault(part.shape[1], []).append(part)
        return [_joined(same) for _, same in sorted(by_number.items())]

    def _of_photos(self, values_R: np.ndarray) -> np.ndarray:
        return values_R if self.index is None else values_R[self.index]


def _joined(parts: list[Photos]) -> Photos:
    if len(parts) == 1:
        return parts[0]
    whole = replace(parts[0], index=np.concatenate([part.index for part in parts if part.index is not None]))
    if any("similarity" in part.__dict__ for part in parts):
        whole.__dict__["similarity"] = np.concatenate([part.similarity for part in parts])
    return whole


_CONTENTS = "contents"  # not a column of a table


def with_scores(rows: pa.Table, scores: Mapping[str, float]) -> Photos:
    """Return the rows with a column of their scores, which are given by content hash; NaN for a row without one."""
    values = [scores.get(content, float("nan")) for content in rows["sha256"].to_pylist()]
    return Photos(rows, columns={SCORE: np.array(values, np.float64)})


class Filter(Protocol):
    """A filter: a frozen dataclass of its settings. The attribute of ``FiltersConfig`` that holds it is its reason."""

    scope: ClassVar[Scope]
    summary: ClassVar[str]
    """What it drops, for the report."""
    traits: ClassVar[tuple[Trait, ...]]

    def drop(self, photos: Photos) -> np.ndarray:
        """Return which photos to drop: bool [N]; in scope ``subject`` bool [B, N], each subject by itself.

        In scope ``subject`` memory must not exceed a few arrays [B, N, N].
        """


@runtime_checkable
class ScoreFilter(Filter, Protocol):
    """A filter of scope ``score``. Its model sees only the images that the filters before it have kept."""

    @property
    def scorer(self) -> Scorer | None:
        """The model that gives the score; None if the filter uses the rows alone."""

    def asks(self, photos: Photos) -> np.ndarray:
        """Return which photos need a score: bool [N]."""
