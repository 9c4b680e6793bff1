"""Compare curation with the truth of two sample worlds of 5,000 photos with 200 planted defects of each kind.

    python -m pytest tests/bench -k right -s        # ten minutes a world on two cores, most of it rendering

Writes results/curation-right.json.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookalike.data.shards import BrokenTarError, iter_samples, open_object
from lookalike.data.triplets import read_triplets
from lookalike.storage import open_store, version_store
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.rows import sha256
from tests.bench.measured import keep

REASONS = {
    "blurred": "blurry",
    "flat": "flat",
    "strip": "aspect",
    "truncated": "undecodable",
    "corrupt": "undecodable",
    "tiny": "too_small",
    "exact_duplicate": "exact_duplicate",
    "near_duplicate": "near_duplicate",
    "wrong_subject": "off_subject",
    "truncated_shard": "truncated_shard",
    "wrong_licence": "licence",
    "taken_down": "taken_down",
}
BY_EMBEDDING = ("off_subject", "no_pair")  # reported; what they reach is the embedder's matter
WORLD = (
    *("--sample.subjects", "440", "--sample.defects_of_each", "200"),
    *("--sample.more_defects", "[wrong_licence,taken_down,overlaid_text]"),
)
TEXT = ("--filters.overlaid_text.max_share", "0.02")

pytestmark = pytest.mark.timeout(7200)


@pytest.mark.parametrize("seed", [11, 12])
def test_each_reason_is_given_to_its_planted_photos_only(
    seed: int,
    bench_folder: Path,
    tmp_path: Path,
    run_job: Callable[..., CompletedProcess[str]],
) -> None:
    raw, dataset = bench_folder / f"right-raw-{seed}", tmp_path / "dataset"

    def run(name: str, *arguments: str) -> None:
        done = run_job(name, *arguments, timeout_s=3600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    run("ingest", "--source", "sample", "--raw", str(raw), "--sample.seed", str(seed), *WORLD)
    truth = json.loads((raw / "_truth.json").read_text())["photos"]
    removed = _take_down_list(raw, truth, tmp_path / "removed.txt")
    flags = ("--filters.licence.allowed", "[zlib]", "--filters.taken_down.list", str(removed))
    curate = ("curate", "run", "--raw", str(raw), "--dataset", str(dataset), *flags)
    run(*curate)
    _check(dataset, 1, truth, REASONS, f"seed {seed}")
    run(*curate, *TEXT)  # half a second of text recognition for each photo that is left
    _check(dataset, 2, truth, REASONS | {"overlaid_text": "overlaid_text"}, f"seed {seed}, with overlaid text")


def _check(dataset: Path, number: int, truth: dict[str, Any], expected: dict[str, str], part: str) -> None:
    """Compare a snapshot with the truth, and record the result."""
    table = pq.read_table(dataset / f"v{number:04d}" / "images", columns=["key", "sha256", "drop_reason"])
    rows = table.to_pylist()
    planted = Counter(photo["defect"] for photo in truth.values() if photo["defect"] in expected)
    record = {
        "command": "python -m pytest tests/bench -k right -s",
        "photos": len(truth),
        "read": len(rows),  # those behind the cut in the truncated shard cannot be
        "planted": dict(planted),
        "reasons": _reasons(truth, rows, expected),
        "pairs": _pairs(dataset, number, {row["sha256"] for row in rows if row["drop_reason"] is None}),
    }
    keep("curation-right", record, part)
    assert len(truth) >= 5000
    for name, found in record["reasons"].items():
        if name not in BY_EMBEDDING:
            assert min(found["precision"], found["recall"]) >= 0.99, name
    assert min(n for kind, n in planted.items() if kind != "truncated_shard") >= 200
    assert record["pairs"]["highest_similarity"] <= FiltersConfig().no_pair.max_similarity
    assert record["pairs"]["subjects_in_both_splits"] == 0


def _take_down_list(raw: Path, truth: dict[str, Any], path: Path) -> Path:
    """A list of the photos planted to be taken down, half by key and half by hash."""
    keys = sorted(key for key, photo in truth.items() if photo["defect"] == "taken_down")
    hashed, entries = set(keys[::2]), [f"key:{key}" for key in keys[1::2]]
    store = open_store(str(raw))
    for info in store.list("shard-"):
        with suppress(BrokenTarError):
            for sample, members in iter_samples(open_object(store, info)):
                if sample.key in hashed:
                    entries.append(sha256(members["jpg"]))
    path.write_text("\n".join(entries))
    return path


def _reasons(truth: dict[str, Any], rows: list[dict[str, Any]], reasons: dict[str, str]) -> dict[str, Any]:
    """Precision and recall of each reason over the photos that could be read, and what was taken for what."""
    planted, dropped = defaultdict(set), defaultdict(set)
    mistakes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        expected = reasons.get(truth[row["key"]]["defect"])
        planted[expected].add(row["key"])
        dropped[row["drop_reason"]].add(row["key"])
        if expected != row["drop_reason"]:
            mistakes[str(row["drop_reason"])][truth[row["key"]]["defect"] or "ordinary"] += 1
            mistakes[str(expected)][f"became {row['drop_reason']}"] += 1
    return {
        name: {
            "planted": len(planted[name]),
            "dropped": len(dropped[name]),
            "precision": len(planted[name] & dropped[name]) / max(1, len(dropped[name])),
            "recall": len(planted[name] & dropped[name]) / max(1, len(planted[name])),
            "mistakes": dict(mistakes[name]),
        }
        for name in sorted((planted.keys() | dropped.keys()) - {None})
    }


def _pairs(dataset: Path, number: int, kept: set[str]) -> dict[str, Any]:
    """The pairs of the snapshot, their similarities computed again from the vectors."""
    vectors: dict[str, np.ndarray] = {}
    for path in (dataset / "work" / "vectors").rglob("*.parquet"):
        for row in pq.read_table(path, columns=["sha256", "vector"]).to_pylist():
            vector = np.array(row["vector"], np.float32)
            vectors[row["sha256"]] = vector / np.linalg.norm(vector)
    triplets = read_triplets(version_store(open_store(str(dataset)), number))
    similarities = []
    for triplet in triplets:
        assert triplet.target_image not in triplet.reference_images
        assert {triplet.target_image, *triplet.reference_images} <= kept
        similarities += [float(vectors[triplet.target_image] @ vectors[image]) for image in triplet.reference_images]
    sides = defaultdict(set)
    for triplet in triplets:
        sides[triplet.subject].add(triplet.split)
    return {
        "triplets": len(triplets),
        "subjects": len(sides),
        "lowest_similarity": round(min(similarities), 3),
        "highest_similarity": round(max(similarities), 3),
        "subjects_in_both_splits": sum(len(side) > 1 for side in sides.values()),
    }
