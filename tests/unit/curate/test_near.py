"""Candidates for near copies: keys, sketches, and comparisons within buckets."""

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.data.shuffle import KEY_BITS
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.graph import components
from pipelines.curate.near import PAIR_SCHEMA, SCHEMA, Sketch, band_rows, candidates

LIMITS = np.full(13, 16)
ALL = np.full(13, 64)  # rejects no sketch


def unit_norm(vectors_ND: np.ndarray) -> np.ndarray:
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), np.float32)


def images(phash: list[int], subjects: list[int]) -> pa.Table:
    return pa.table({"phash": pa.array(phash, pa.uint64()), "subject_hash": pa.array(subjects, pa.int64())})


def bucket_rows(keys: np.ndarray, phash: np.ndarray, sketch: np.ndarray, subjects: np.ndarray) -> pa.Table:
    n = len(keys)
    columns = [keys, phash.astype(np.uint64), sketch.astype(np.uint64), subjects, np.arange(n) // 7, np.arange(n) % 7]
    typed = [column.astype(field.type.to_pandas_dtype()) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(typed, SCHEMA)


def flipped(rng: np.random.Generator, value: int, bits: int) -> int:
    for bit in rng.choice(64, bits, replace=False):
        value ^= 1 << int(bit)
    return value


def test_images_within_four_bits_share_a_key() -> None:
    rng = np.random.default_rng(0)
    sketch = Sketch(np.zeros(8, np.float32))
    vectors = unit_norm(rng.normal(size=(2, 8)))
    for bits in (0, 1, 2, 3, 4) * 40:
        first = int(rng.integers(0, 1 << 63))
        keys = band_rows(images([first, flipped(rng, first, bits)], [1, 2]), vectors, sketch, 0)["key"].to_numpy()
        assert set(keys[:15]) & set(keys[15:])


def test_keys_spread_over_all_ranges_of_a_shuffle() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 8, 2000).tolist()  # most bits of all hashes are equal
    vectors = unit_norm(rng.normal(size=(2000, 8)))
    keys = band_rows(images(hashes, [0] * 2000), vectors, Sketch(np.zeros(8, np.float32)), 0)["key"].to_numpy()
    assert keys.min() >= 0
    assert keys.max() < 1 << KEY_BITS
    distinct = np.unique(keys) >> KEY_BITS - 4
    assert np.bincount(distinct, minlength=16).min() > 0.6 * len(distinct) / 16


def test_band_rows_name_their_image_and_leave_out_those_without_a_vector() -> None:
    vectors = unit_norm(np.random.default_rng(0).normal(size=(5, 8)))
    vectors[1], vectors[3, 2] = 0, np.nan
    sketch = Sketch(np.zeros(8, np.float32))
    table = band_rows(images([10, 11, 12, 13, 14], [100, 101, 102, 103, 104]), vectors, sketch, 7)
    assert table.schema == SCHEMA
    assert table["row"].to_pylist() == [0] * 15 + [2] * 15 + [4] * 15
    assert set(table["unit"].to_pylist()) == {7}
    assert table["subject_hash"].to_pylist()[::15] == [100, 102, 104]
    assert table["phash"].to_pylist()[::15] == [10, 12, 14]
    assert (table["sketch"].to_numpy()[::15] == sketch.of(vectors[[0, 2, 4]])).all()
    assert len(band_rows(images([], []), np.zeros((0, 8), np.float32), sketch, 0)) == 0


def test_a_sketch_does_not_depend_on_the_batch_and_is_pinned() -> None:
    vectors = unit_norm(np.random.default_rng(1).normal(size=(1001, 300)) + 0.5)
    sketch = Sketch(vectors.mean(0))
    one_by_one = np.concatenate([sketch.of(vectors[i : i + 1]) for i in range(0, 1001, 50)])
    assert (one_by_one == sketch.of(vectors)[::50]).all()
    assert (sketch.of(np.asfortranarray(vectors)) == sketch.of(vectors)).all()
    axes = np.eye(8, dtype=np.float32)[:3]
    values = [f"{value:016x}" for value in Sketch(np.zeros(8, np.float32)).of(axes).tolist()]
    assert values == ["a9c935dfba6eb1d3", "f768be878f21b3d5", "4205e1610aa40e03"]  # pragma: allowlist secret


@pytest.mark.parametrize("shared", [0.0, 0.58, 0.8])
def test_pairs_of_the_required_similarity_are_kept_for_any_embedder(shared: float) -> None:
    """``shared`` is the length of the mean of all vectors: .58 for the default embedder, 0 for random vectors."""
    rng, n, rule = np.random.default_rng(2), 4000, NearDuplicate()
    free = np.sqrt(1 - shared**2)
    u, v = unit_norm(rng.normal(size=(n, 256))), rng.normal(size=(n, 256))
    v = unit_norm(v - (v * u).sum(1, keepdims=True) * u)

    def vectors(cosine: float) -> np.ndarray:
        turned = cosine * u + np.sqrt(1 - cosine**2) * v
        return np.concatenate([np.full((n, 1), shared), free * turned], axis=1).astype(np.float32)

    first = vectors(1)
    sketch = Sketch(first.mean(0))
    limits = sketch.limits(rule)
    for distance in (0, 12):
        required = float(rule.required(np.array(distance)))
        second = vectors(1 - (1 - required) / free**2)
        assert np.allclose((first * second).sum(1), required, atol=1e-3)
        differs = np.bitwise_count(sketch.of(first) ^ sketch.of(second))
        assert (differs <= limits[distance]).mean() > 0.88
    unrelated = np.bitwise_count(sketch.of(first[1:]) ^ sketch.of(first[:-1]))
    assert (unrelated <= limits[0]).mean() < 0.03


def test_the_sketch_rejects_nothing_if_vectors_differ_less_than_the_rule_allows() -> None:
    mean = np.zeros(64, np.float32)
    mean[0] = 0.97
    assert (Sketch(mean).limits(NearDuplicate()) == 64).all()


def brute_force(rows: pa.Table, limits: np.ndarray) -> set[tuple[int, ...]]:
    pairs = set()
    for a, b in combinations(rows.to_pylist(), 2):
        distance = (a["phash"] ^ b["phash"]).bit_count()
        if a["key"] != b["key"] or a["subject_hash"] == b["subject_hash"] or distance >= len(limits):
            continue
        if (a["sketch"] ^ b["sketch"]).bit_count() <= limits[distance]:
            ends = sorted((row["subject_hash"], row["unit"], row["row"]) for row in (a, b))
            pairs.add((*ends[0], *ends[1], distance))
    return pairs


def as_set(pairs: pa.Table) -> set[tuple[int, ...]]:
    return set(zip(*(column.to_pylist() for column in pairs.columns), strict=True))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 90), keys=st.integers(1, 30), subjects=st.integers(1, 40))
def test_candidates_are_the_pairs_within_both_distances(seed: int, n: int, keys: int, subjects: int) -> None:
    rng = np.random.default_rng(seed)
    near = rng.integers(0, 1 << 9, (2, n)) * rng.integers(1, 1 << 40, 2)[:, None]  # few bits differ
    key = np.sort(rng.integers(0, keys, n))
    rows = bucket_rows(key, near[0], near[1], rng.integers(0, subjects, n))
    limits = rng.integers(0, 20, 13)
    pairs, capped = candidates(rows, limits)
    expected = brute_force(rows, limits)
    assert pairs.schema == PAIR_SCHEMA
    assert len(pairs) == len(as_set(pairs))
    assert as_set(pairs) <= expected
    if capped == 0:
        assert as_set(pairs) == expected
    order = [(name, "ascending") for name in PAIR_SCHEMA.names[:6]]
    assert pairs.equals(pairs.sort_by(order))


def test_ranges_of_keys_give_together_what_all_keys_give() -> None:
    rng = np.random.default_rng(3)
    n = 200_000  # several chunks
    phash, sketch = rng.integers(0, 1 << 10, (2, n)) * 0x4000100040001
    rows = bucket_rows(np.sort(rng.integers(0, n // 6, n)), phash, sketch, rng.integers(0, 1000, n))
    whole, _ = candidates(rows, LIMITS)
    parts = [candidates(rows.filter(pa.array(rows["key"].to_numpy() % 5 == part)), LIMITS)[0] for part in range(5)]
    assert len(whole) > 1000
    assert as_set(whole) == set().union(*map(as_set, parts))


def test_an_image_is_paired_once_although_two_images_share_several_keys() -> None:
    vectors = unit_norm(np.random.default_rng(0).normal(size=(1, 8)))[[0, 0]]
    table = band_rows(images([5, 5], [9, 8]), vectors, Sketch(np.zeros(8, np.float32)), 3).sort_by("key")
    pairs, capped = candidates(table, LIMITS)
    assert pairs.to_pylist() == [dict(zip(PAIR_SCHEMA.names, (8, 3, 1, 9, 3, 0, 0), strict=True))]
    assert capped == 0


def test_a_bucket_of_equal_images_gives_a_bounded_number_of_pairs_that_joins_all_subjects() -> None:
    for n in (400, 3000):
        rows = bucket_rows(np.zeros(n), np.zeros(n), np.zeros(n), np.arange(n))
        pairs, capped = candidates(rows, LIMITS)
        assert len(pairs) <= 32 * n
        assert capped >= n - 33
        ends = [pairs[name].to_numpy() for name in ("a_subject", "b_subject")]
        assert len(set(components(*ends, n))) == 1


def test_copies_are_found_in_a_bucket_that_is_too_large_for_all_pairs() -> None:
    rng = np.random.default_rng(4)
    copies, others = 200, 20_000
    first = rng.integers(0, 1 << 63, copies)
    second = np.array([flipped(rng, int(value), 4) for value in first])
    sketch = np.concatenate([first, second, rng.integers(0, 1 << 63, others)])
    order = rng.permutation(len(sketch))
    n = len(sketch)
    subjects = np.arange(n)
    rows = bucket_rows(np.zeros(n), np.zeros(n), sketch[order], subjects[order])
    pairs, capped = candidates(rows, LIMITS)
    found = {(a, b) for a, b in zip(pairs["a_subject"].to_pylist(), pairs["b_subject"].to_pylist(), strict=True)}
    assert sum((i, i + copies) in found for i in range(copies)) >= 0.9 * copies
    assert capped == n


def test_photos_of_one_subject_are_no_candidates_and_no_bound_is_reported() -> None:
    rows = bucket_rows(np.zeros(500), np.zeros(500), np.zeros(500), np.full(500, 3))
    pairs, capped = candidates(rows, ALL)
    assert (len(pairs), capped) == (0, 0)
