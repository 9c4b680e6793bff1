"""Measure found subjects: the precision of pairs that the default embedder joins, and the cost of a photo.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench/test_found_subjects.py -s

FOLDER holds ``<subject>/<nn>.jpg``. Writes results/found-subjects.json, each part by a test: photos with known subjects
by threshold; the cost of synthetic photos (64-d vectors, five of a subject) in 16 to 256 raw shards of 200, with
cells of 400 photos; and how many of their pairs are in one cell.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from lookalike.annotators.embedder import load_embedder
from lookalike.data.images import decode
from lookalike.data.shards import iter_samples
from lookalike.storage import open_store
from pipelines.curate.cells import Cells
from pipelines.curate.cluster_subjects import group
from pipelines.curate.config import CurateConfig, FoundConfig
from pipelines.curate.features import FEATURE_SIDE
from tests.bench.measured import keep
from tests.bench.repeated import VARIABLE, bench_photos
from tests.unit.curate.indexed import Counted, find, photos, write_index

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
COMMAND = f"{VARIABLE}=dreambooth-dev python -m pytest tests/bench/test_found_subjects.py -s"
SHARDS = (16, 64, 256)
WORLD = ("--source", "sample", "--sample.subjects", "100", "--sample.defects", "false", "--sample.seed", "7")


pytestmark = pytest.mark.timeout(3600)


def test_pairs_of_the_sample_world(bench_folder: Path, run_job: Callable[..., CompletedProcess[str]]) -> None:
    raw = bench_folder / "found-raw"
    done = run_job("ingest", *WORLD, "--raw", str(raw), timeout_s=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    _keep_pairs("sample world", _of_shards(raw))


def test_pairs_of_photographs() -> None:
    _keep_pairs("photographs", [(path.parent.name, path.read_bytes()) for path in bench_photos()])


def test_cost_of_a_photo_in_more_and_more_raw_shards(bench_folder: Path) -> None:
    costs = {f"{shards} raw shards": _cost(bench_folder, shards) for shards in SHARDS}
    keep("found-subjects", {"command": COMMAND, **costs}, part="cost")
    times = [cost["us_a_photo"] for cost in costs.values()]
    assert max(times[1:]) <= 1.5 * times[0]
    assert len({cost["reads_of_tables_a_shard"] for cost in costs.values()}) == 1


def test_pairs_of_a_subject_that_are_in_one_cell() -> None:
    shares = {f"{each} photos a cell": _in_one_cell(each) for each in (256, 64, 13, 7)}
    keep("found-subjects", {"command": COMMAND, "sampled": shares}, part="pairs_in_one_cell")


def _keep_pairs(name: str, photos: list[tuple[str, bytes]]) -> None:
    threshold = FoundConfig().min_similarity
    measured = _quality(photos)
    record = {"command": COMMAND, "embedder": _embedder_name(), "default": threshold, **measured}
    keep("found-subjects", record, part=name)
    assert measured["by_threshold"][str(threshold)]["precision"] >= 0.9


def _embedder_name() -> str:
    return CurateConfig(raw="raw", dataset="dataset").embedder


def _of_shards(raw: Path) -> list[tuple[str, bytes]]:
    found = []
    for path in sorted(raw.glob("*.tar")):
        with path.open("rb") as file:
            found += [(json.loads(data["json"])["subject"], data["jpg"]) for _, data in iter_samples(file)]
    return found


def _quality(photos: list[tuple[str, bytes]]) -> dict[str, Any]:
    embed = load_embedder(_embedder_name())
    vectors = np.concatenate([embed([decode(data, FEATURE_SIDE + 8)]) for _, data in photos])
    subjects = np.array([subject for subject, _ in photos])
    once = np.triu(np.ones((len(subjects), len(subjects)), bool), 1)
    same = (subjects[:, None] == subjects) & once
    by_threshold = {}
    for threshold in THRESHOLDS:
        labels = group(vectors, FoundConfig(min_similarity=threshold))
        joined = (labels[:, None] == labels) & once
        right = int((joined & same).sum())
        by_threshold[str(threshold)] = {
            "precision": round(right / max(1, int(joined.sum())), 3),
            "recall": round(right / int(same.sum()), 3),
            "groups": len(set(labels.tolist())),
        }
    return {"photographs": len(photos), "subjects": len(set(subjects.tolist())), "by_threshold": by_threshold}


def _cost(folder: Path, shards: int) -> dict[str, float]:
    """CPU time of a photo and requests of a raw shard, in all stages together."""
    store = open_store(str(folder / f"found-{shards}"))
    tables = write_index(store, photos(shards, 200))
    size = sum(info.size for shard in tables[:16] for info in (shard.rows, shard.vectors))
    counted, start = Counted(store), time.process_time()
    find(counted, tables, FoundConfig(images_per_cell=400), group_bytes=size)
    took = time.process_time() - start
    return {
        "us_a_photo": round(took / (shards * 200) * 1e6, 1),
        "reads_of_tables_a_shard": round(counted.reads("tables") / shards, 2),
        "reads_of_shuffles_a_shard": round(counted.reads("work") / shards, 2),
    }


def _in_one_cell(sampled: int) -> float:
    """Share of pairs of one subject that are in one of 200 cells, by the photos of the sample for each cell."""
    views = photos(1, 100_000, noise=0.5)[0].reshape(5, -1, 64)
    rng = np.random.default_rng(0)
    sample = views.reshape(-1, 64)[rng.choice(100_000, 200 * sampled, replace=False)]
    cells = Cells.of_sample(sample, 200, seed=0).assign(views.reshape(-1, 64)).reshape(5, -1)
    pairs = [cells[a] == cells[b] for a in range(5) for b in range(a)]
    return round(float(np.mean(pairs)), 3)
