"""Measure the search for near copies across subjects: recall, share of other pairs that it passes, and its time.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k near_links -s

FOLDER holds ``<subject>/<nn>.jpg``. The changed copies of the photos are photos of other subjects. Writes
results/near-links.json, with two earlier rules beside it: all pairs within ``max_hash_distance`` bits compared by their
vectors, and only those with an equal band of four.
"""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.annotators.embedder import load_embedder
from lookalike.data.images import decode
from pipelines.curate.features import FEATURE_SIDE, features
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.near import SCHEMA, Sketch, band_rows, candidates
from pipelines.curate.tables import vectors_array, vectors_of
from tests.bench.measured import keep
from tests.bench.repeated import bench_photos
from tests.bench.test_near_duplicates import COPIES, changed_copy

pytestmark = pytest.mark.timeout(3600)
EMBEDDERS = ("efficientnet-lite0-colour", "efficientnet-lite0")
RULE = NearDuplicate()


def test_near_links() -> None:
    import torch

    torch.set_num_threads(1)
    measured: dict[str, Any] = {"photographs": _on_photographs()}
    measured["vectors"] = {f"{dim}-d, mean {mean}": _on_vectors(dim, mean) for dim, mean in VECTORS}
    measured["time"] = {f"buckets of {average}": _times(rows, average) for rows, average in TIMED}
    measured["band rows, us an image (1536-d)"] = _time_of_band_rows()
    variable = "LOOKALIKE_BENCH_PHOTOS=dreambooth-dev"  # pragma: allowlist secret
    keep("near-links", {"command": f"{variable} python -m pytest tests/bench -k near_links -s", **measured})
    for name, result in measured["photographs"].items():
        assert result["copies_kept_by_the_sketch"] >= 0.99, name
        assert result["recall"]["two of six bands, sketch"] >= result["recall"]["one of four bands"], name
    for name, result in measured["vectors"].items():
        assert min(result["kept_at_the_required_similarity"]) >= 0.88, name


def _on_photographs() -> dict[str, Any]:
    paths = bench_photos()
    files = [path.read_bytes() for path in paths]
    pixels = [[decode(data, FEATURE_SIDE + 8) for data in files]]
    for change, quality in COPIES.values():
        copies = [changed_copy(data, change, quality) for data in files]
        pixels.append([decode(data, FEATURE_SIDE + 8) for data in copies])
    images = [image for kind in pixels for image in kind]
    hash_N = np.array([features(image)["phash"] for image in images], np.uint64)
    thing_N = np.array([path.parent.name for path in paths] * len(pixels))
    subject_N = np.arange(len(images)) // len(paths) * 1000 + np.unique(thing_N, return_inverse=True)[1]
    return {name: _recall(name, images, hash_N, thing_N, subject_N) for name in EMBEDDERS}


def _recall(
    name: str, images: list[np.ndarray], hash_N: np.ndarray, thing_N: np.ndarray, subject_N: np.ndarray
) -> dict[str, Any]:
    embed = load_embedder(name)
    vectors_ND = np.concatenate([embed(images[first : first + 1]) for first in range(len(images))])
    vectors_ND = vectors_of(pa.chunked_array([vectors_array(vectors_ND)]))
    sketch = Sketch(vectors_ND.mean(0))
    a, b = np.triu_indices(len(images), 1)
    a, b = (side[subject_N[a] != subject_N[b]] for side in (a, b))
    distance = np.bitwise_count(hash_N[a] ^ hash_N[b])
    similarity = np.round(np.einsum("nd,nd->n", vectors_ND[a], vectors_ND[b]), 3)
    near = distance <= RULE.max_hash_distance
    copies = near & (similarity >= RULE.required(distance))

    limits, sketch_N = sketch.limits(RULE), sketch.of(vectors_ND)
    differs = np.bitwise_count(sketch_N[a] ^ sketch_N[b])
    kept = near.copy()
    kept[near] = differs[near] <= limits[distance[near]]
    rows = band_rows(pa.table({"phash": hash_N, "subject_hash": subject_N}), vectors_ND, sketch, 0).sort_by("key")
    pairs, capped = candidates(rows, limits)
    assert capped == 0
    number = {pair: i for i, pair in enumerate(zip(a.tolist(), b.tolist(), strict=True))}
    ends = (pairs["a_row"].to_pylist(), pairs["b_row"].to_pylist())
    found = np.zeros(len(a), bool)
    found[[number[min(pair), max(pair)] for pair in zip(*ends, strict=True)]] = True
    sixteen = [(hash_N >> np.uint64(band * 16) & np.uint64(0xFFFF)) for band in range(4)]
    banded = np.logical_or.reduce([part[a] == part[b] for part in sixteen])
    other = thing_N[a] != thing_N[b]
    return {
        "images": len(images),
        "mean_length": round(float(np.linalg.norm(sketch.mean)), 3),
        "sketch_limits": limits.tolist(),
        "copies": int(copies.sum()),
        "recall": {
            "all pairs compared": 1.0,
            "one of four bands": round(float(banded[copies].mean()), 4),
            "two of six bands": round(float(_share_a_key(rows, len(images), a[copies], b[copies])), 4),
            "two of six bands, sketch": round(float(found[copies].mean()), 4),
        },
        "copies_kept_by_the_sketch": round(float(kept[copies].mean()), 4),
        "share_of_pairs_of_other_things_passed": {
            f"{limit} bits": round(float((differs[other] <= limit).mean()), 5) for limit in (limits[-1], limits[0])
        },
        "candidates_that_are_no_copies": int((found & ~copies).sum()),
    }


def _share_a_key(rows: pa.Table, images: int, a: np.ndarray, b: np.ndarray) -> float:
    keys: list[set[int]] = [set() for _ in range(images)]
    for row, key in zip(rows["row"].to_pylist(), rows["key"].to_pylist(), strict=True):
        keys[row].add(key)
    return float(np.mean([bool(keys[i] & keys[j]) for i, j in zip(a, b, strict=True)]))


VECTORS = ((64, 0.0), (384, 0.0), (768, 0.3), (1536, 0.58), (768, 0.8), (768, 0.9))


def _on_vectors(dim: int, mean: float) -> dict[str, Any]:
    """What the sketch keeps of pairs of exactly the required similarity, with vectors around a mean of that length."""
    rng, n = np.random.default_rng(0), 20_000
    free = np.sqrt(1 - mean**2)
    u, v = (rng.standard_normal((n, dim - 1), dtype=np.float32) for _ in range(2))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v -= (v * u).sum(1, keepdims=True) * u
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    first = np.concatenate([np.full((n, 1), mean, np.float32), free * u], axis=1).astype(np.float32)
    sketch = Sketch(first.mean(0))
    limits, of_first, kept = sketch.limits(RULE), sketch.of(first), []
    for distance in (0, RULE.max_hash_distance):
        cosine = 1 - (1 - RULE.required(np.array(distance))) / free**2
        second = np.concatenate([first[:, :1], free * (cosine * u + np.sqrt(1 - cosine**2) * v)], axis=1)
        differs = np.bitwise_count(of_first ^ sketch.of(second.astype(np.float32)))
        kept.append(round(float((differs <= limits[distance]).mean()), 3))
    unrelated = np.bitwise_count(of_first[1:] ^ of_first[:-1])
    return {
        "sketch_limits": [int(limits[0]), int(limits[-1])],
        "kept_at_the_required_similarity": kept,
        "unrelated_passed": [round(float((unrelated <= limits[i]).mean()), 5) for i in (0, -1)],
    }


TIMED = ((3_000_000, 5), (1_000_000, 50), (1_000_000, 250), (500_000, 2_000), (1_000_000, 1_000_000))


def _times(n: int, average: int) -> dict[str, float]:
    """CPU time of candidates among random rows with buckets of that average size."""
    rng = np.random.default_rng(0)
    keys = np.sort(rng.integers(0, n // average, n))
    hashes = rng.integers(0, 1 << 64, (2, n), dtype=np.uint64)
    rows = pa.table(
        [keys, *hashes, rng.integers(0, n // 5, n), np.zeros(n, np.int32), np.arange(n, dtype=np.int32)], SCHEMA
    )
    sizes = np.bincount(keys)
    pairs = float((sizes * (sizes - 1) / 2).sum())
    limits = np.full(RULE.max_hash_distance + 1, 16)
    took = []
    for _ in range(3):
        start = time.process_time()
        _, capped = candidates(rows, limits)
        took.append(time.process_time() - start)
    median = sorted(took)[1]
    return {
        "rows": n,
        "ns_a_pair_of_the_bucket": round(median / pairs * 1e9, 2),
        "us_a_row": round(median / n * 1e6, 3),
        "us_an_image_of_15_rows": round(15 * median / n * 1e6, 2),
        "rows_not_fully_compared": capped,
    }


def _time_of_band_rows() -> float:
    rng, n = np.random.default_rng(0), 20_000
    vectors = rng.standard_normal((n, 1536), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    images = pa.table({"phash": rng.integers(0, 1 << 64, n, dtype=np.uint64), "subject_hash": np.arange(n)})
    sketch = Sketch(vectors.mean(0))
    band_rows(images, vectors, sketch, 0)
    start = time.process_time()
    band_rows(images, vectors, sketch, 0)
    return round((time.process_time() - start) / n * 1e6, 1)
