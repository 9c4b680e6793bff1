"""Near copies by locality-sensitive hashing, on tables in memory: which images are worth comparing by their vectors.

The 64 bits of the perceptual hash are cut into six bands, and an image gets a key for each two of them. Images with an
equal key are in one bucket. That finds every pair within 4 bits, and of copies within 12 bits as many as a key for each
of four bands, with buckets that are 64 times smaller. A sketch of the vector beside each row then rejects nearly all
pairs of a bucket, so that few vectors have to be read (``tests/bench/test_near_links.py``).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import pyarrow as pa

from lookalike.data.permutation import GOLDEN, mixed
from pipelines.curate.filters.near_duplicate import NearDuplicate

# Legend: N images, D dimensions of a vector, B band rows, K keys of an image.

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),  # in [0, 2^62): the bucket
        ("phash", pa.uint64()),
        ("sketch", pa.uint64()),
        ("subject_hash", pa.int64()),
        ("unit", pa.int32()),  # with ``row`` the identity of the image
        ("row", pa.int32()),
    ]
)
"""An image under one of its keys."""

PAIR_SCHEMA = pa.schema(
    [
        ("a_subject", pa.int64()),
        ("a_unit", pa.int32()),
        ("a_row", pa.int32()),
        ("b_subject", pa.int64()),
        ("b_unit", pa.int32()),
        ("b_row", pa.int32()),
        ("distance", pa.int8()),  # bits in which the perceptual hashes differ
    ]
)
"""Two images of different subjects; ``a`` is before ``b`` in the order of (subject hash, unit, row)."""

SKETCH_BITS = 64
_WIDTHS = (11, 11, 11, 11, 10, 10)  # bits of the bands
KEYS = tuple(combinations(range(len(_WIDTHS)), 2))
"""The bands of each key of an image."""

_SCALE = 4096  # a vector's components are rounded to 1/4096, so that sums are exact in float32 in any order
_KEPT_AT_THE_EDGE = 0.9  # share of pairs of exactly the required similarity that the sketch keeps

_ALL_PAIRS = 512  # rows of a bucket that are all compared with each other
_WINDOW = 16  # rows after each row that it is compared with in a larger bucket, in each of its orders
_ORDERS = 8  # of the rows of a larger bucket: by the sketch, rotated by 8 bits each time
_PAIRS_PER_ROW = 32  # candidates of a row in a bucket
_CHUNK = 1 << 16  # rows that are compared at once


@dataclass(frozen=True, eq=False)
class Sketch:
    """64 signs of random projections of a unit-norm vector less the mean: similar vectors differ in few bits."""

    mean: np.ndarray
    """Mean of a sample of vectors, float32 [D]."""

    def of(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return the sketches of unit-norm vectors [N, D], uint64 [N]; they do not depend on the batch or the BLAS."""
        signs_N64 = self._project(vectors_ND) > self._project(self.mean[None])
        return np.packbits(signs_N64, axis=1, bitorder="little").view("<u8").astype(np.uint64).reshape(-1)

    def limits(self, rule: NearDuplicate) -> np.ndarray:
        """Return how many bits of the sketches of two copies may differ, int64 [rule.max_hash_distance + 1], for each
        distance of their perceptual hashes.

        A bit differs with probability angle / π, where the angle is that of the vectors less the mean. It is larger
        for an embedder whose vectors share a direction, so the limits follow from the length of the mean. They keep
        90 % of pairs of exactly the similarity that ``rule`` requires, and nearly all of more similar ones. For an
        embedder with a mean of length .95 or more the limit is 64: nothing is rejected.
        """
        from scipy.special import bdtr

        required = rule.required(np.arange(rule.max_hash_distance + 1))
        spread = max(1e-6, 1 - float(self.mean.astype(np.float64) @ self.mean))  # mean square of the length less mean
        differs = np.arccos(np.clip(1 - (1 - required) / spread, -1, 1)) / np.pi
        share = bdtr(np.arange(SKETCH_BITS + 1)[:, None], SKETCH_BITS, differs[None])  # with at most so many bits
        limits = np.argmax(share >= _KEPT_AT_THE_EDGE, axis=0)
        return np.where(differs >= 0.5, SKETCH_BITS, limits).astype(np.int64)

    def _project(self, vectors_ND: np.ndarray) -> np.ndarray:
        return np.asarray(np.rint(vectors_ND * np.float32(_SCALE)) @ self._signs)

    @cached_property
    def _signs(self) -> np.ndarray:
        """Random signs, +1 or -1, float32 [D, 64]; the same for every library and version."""
        data = hashlib.shake_256(b"lookalike near-copy sketch").digest(len(self.mean) * SKETCH_BITS // 8)
        bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(len(self.mean), SKETCH_BITS)
        return bits.astype(np.float32) * 2 - 1


def band_rows(rows: pa.Table, vectors_ND: np.ndarray, sketch: Sketch, unit: int) -> pa.Table:
    """Return 15 rows of :data:`SCHEMA` for each image that has a vector.

    Args:
        rows: N images with the columns ``phash`` and ``subject_hash``.
        vectors_ND: their unit-norm vectors; an image without a vector has a zero vector.
        sketch: made of the mean of the whole data set.
        unit: number of this set of rows; an image's ``row`` is its position in it.
    """
    norm_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    row_N = np.flatnonzero((norm_N > 0) & np.isfinite(norm_N))
    if len(row_N) < len(vectors_ND):
        vectors_ND = vectors_ND[row_N]
    phash_N = rows["phash"].to_numpy().astype(np.uint64)[row_N]
    subject_N = rows["subject_hash"].to_numpy()[row_N]
    keys_NK = _keys(phash_N)
    n, k = keys_NK.shape
    columns = {
        "key": keys_NK.reshape(-1),
        "phash": np.repeat(phash_N, k),
        "sketch": np.repeat(sketch.of(vectors_ND), k),
        "subject_hash": np.repeat(subject_N, k),
        "unit": np.full(n * k, unit, np.int32),
        "row": np.repeat(row_N.astype(np.int32), k),
    }
    return pa.table(columns, SCHEMA)


def candidates(rows: pa.Table, limits: np.ndarray) -> tuple[pa.Table, int]:
    """Return the pairs of images in one bucket that may be near copies, and how many rows were not fully compared.

    A pair belongs to two subjects, its perceptual hashes differ in at most ``len(limits) - 1`` bits, and its sketches
    in at most ``limits[distance]``. Pairs of one call are distinct and sorted; another range of keys may have the same
    pair. Time is bounded: in a bucket of more than 512 rows each row is compared with the 16 that follow it in each of
    eight orders by the sketch, and a row of a smaller bucket has at most 32 candidates there. The second result counts
    the rows that these bounds affect.

    Args:
        rows: rows of :data:`SCHEMA` sorted by ``key``, all rows of their keys.
        limits: of :meth:`Sketch.limits`.
    """
    key_B = rows["key"].to_numpy()
    assert (key_B[1:] >= key_B[:-1]).all(), "band rows are not sorted by their key"
    band = _Rows.of(rows)
    starts = np.flatnonzero(np.r_[True, key_B[1:] != key_B[:-1]]) if len(key_B) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(key_B)])
    found, capped = [], 0
    small, large = (sizes > 1) & (sizes <= _ALL_PAIRS), sizes > _ALL_PAIRS
    for buckets in _chunks(sizes[small]):
        rows_of, lengths = _laid_out(starts[small][buckets], sizes[small][buckets])
        pairs, full = _compare(band.take(rows_of), lengths, limits, _ALL_PAIRS)
        found.append(pairs)
        capped += full
    for buckets in _chunks(sizes[large]):
        rows_of, lengths = _laid_out(starts[large][buckets], sizes[large][buckets])
        part, bucket = band.take(rows_of), np.repeat(np.arange(len(lengths)), lengths)
        capped += len(bucket)
        for turn in range(_ORDERS):
            left = np.uint64(turn * SKETCH_BITS // _ORDERS)
            right = np.uint64(SKETCH_BITS) - left
            rotated = part.sketch << left | part.sketch >> right if turn else part.sketch
            pairs, _ = _compare(part.take(np.lexsort((rotated, bucket))), lengths, limits, _WINDOW + 1)
            found.append(pairs)
    return _table(found), capped


@dataclass(frozen=True)
class _Rows:
    """Columns of band rows, each [B]."""

    phash: np.ndarray
    sketch: np.ndarray
    subject: np.ndarray
    place: np.ndarray
    """(unit, row) as one number."""

    @classmethod
    def of(cls, rows: pa.Table) -> "_Rows":
        place = rows["unit"].to_numpy().astype(np.int64) << 32 | rows["row"].to_numpy().astype(np.int64)
        return cls(rows["phash"].to_numpy(), rows["sketch"].to_numpy(), rows["subject_hash"].to_numpy(), place)

    def take(self, positions: np.ndarray) -> "_Rows":
        columns = (self.phash, self.sketch, self.subject, self.place)
        return _Rows(*(column[positions] for column in columns))


_Pairs = tuple[np.ndarray, ...]  # subject and place of a, subject and place of b, distance


def _laid_out(starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the rows of some buckets, the buckets with most rows first, and the buckets' sizes."""
    order = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[order], sizes[order]
    first = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - first, sizes), sizes


def _compare(rows: _Rows, sizes: np.ndarray, limits: np.ndarray, reach: int) -> tuple[_Pairs, int]:
    """Compare each row of some buckets with the ``reach`` - 1 rows that follow it in its bucket.

    Buckets lie behind one another, those with most rows first: so all pairs of rows at one distance are two slices.
    Returns the candidates, and the number of rows that have more of them than are kept.
    """
    ends = np.cumsum(sizes)
    bucket = np.repeat(np.arange(len(sizes)), sizes)
    count, full = np.zeros(len(bucket), np.int32), np.zeros(len(bucket), bool)
    found: list[_Pairs] = []
    for offset in range(1, min(reach, int(sizes[0]))):
        n = int(ends[np.searchsorted(-sizes, -offset) - 1])  # rows of buckets with more than ``offset`` rows
        distance = np.bitwise_count(rows.phash[: n - offset] ^ rows.phash[offset:n])
        a = np.flatnonzero(distance < len(limits))
        b = a + offset
        keep = (bucket[a] == bucket[b]) & (rows.subject[a] != rows.subject[b])
        keep &= np.bitwise_count(rows.sketch[a] ^ rows.sketch[b]) <= limits[distance[a]]
        a, b = a[keep], b[keep]
        full[a[count[a] == _PAIRS_PER_ROW]] = True
        kept = count[a] < _PAIRS_PER_ROW
        a, b = a[kept], b[kept]
        count[a] += 1
        found.append((rows.subject[a], rows.place[a], rows.subject[b], rows.place[b], distance[a].astype(np.int8)))
    return _distinct(found), int(full.sum())


def _distinct(found: Sequence[_Pairs]) -> _Pairs:
    """The pairs with their lower image first, sorted, each once."""
    a_subject, a, b_subject, b, distance = (np.concatenate(columns) for columns in zip(*found, strict=True))
    swap = (a_subject > b_subject) | ((a_subject == b_subject) & (a > b))
    a_subject, b_subject = np.where(swap, b_subject, a_subject), np.where(swap, a_subject, b_subject)
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    order = np.lexsort((b, b_subject, a, a_subject))
    a, b = a[order], b[order]
    first = np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])] if len(a) else np.zeros(0, bool)
    chosen = order[first]
    return a_subject[chosen], a[first], b_subject[chosen], b[first], distance[chosen]


def _table(found: list[_Pairs]) -> pa.Table:
    if not found:
        return PAIR_SCHEMA.empty_table()
    a_subject, a, b_subject, b, distance = _distinct(found)
    low = (1 << 32) - 1
    columns = [a_subject, a >> 32, a & low, b_subject, b >> 32, b & low, distance]
    typed = [column.astype(field.type.to_pandas_dtype()) for column, field in zip(columns, PAIR_SCHEMA, strict=True)]
    return pa.table(typed, PAIR_SCHEMA)


def _chunks(sizes: np.ndarray) -> Iterator[slice]:
    """Yield slices of buckets that have about :data:`_CHUNK` rows together."""
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] + _CHUNK, _CHUNK) if len(ends) else [])
    first = 0
    for stop in np.minimum(cuts + 1, len(sizes)):
        if stop > first:
            yield slice(first, int(stop))
        first = max(first, int(stop))


def _keys(phash_N: np.ndarray) -> np.ndarray:
    """Return the keys of perceptual hashes, int64 [N, K]: two bands and which bands they are, hashed to 32 of 62 bits.

    The low bits are zero, which takes 4 bytes less in a compressed row. Of 63 million keys 1.5 % meet another one.
    """
    bands, shift = [], 0
    for width in _WIDTHS:
        bands.append(phash_N >> np.uint64(shift) & np.uint64((1 << width) - 1))
        shift += width
    values = [np.uint64(number << 32) | bands[i] << np.uint64(16) | bands[j] for number, (i, j) in enumerate(KEYS)]
    return (mixed(np.stack(values, axis=1) + GOLDEN) >> np.uint64(32) << np.uint64(30)).astype(np.int64)
