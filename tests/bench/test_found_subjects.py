"""Measure the precision of found subjects: pairs that the default embedder joins, of photos with known subjects.

    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k found -s

FOLDER holds ``<subject>/<nn>.jpg``; without it the sample world alone is measured. Writes results/found-subjects.json.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from lookalike.annotators.embedder import load_embedder
from lookalike.data.images import decode
from lookalike.data.shards import iter_samples
from pipelines.curate.cluster_subjects import group
from pipelines.curate.config import CurateConfig, FoundConfig
from pipelines.curate.features import FEATURE_SIDE
from tests.bench.measured import keep
from tests.bench.repeated import VARIABLE, bench_photos

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
WORLD = ("--source", "sample", "--sample.subjects", "100", "--sample.defects", "false", "--sample.seed", "7")


@pytest.mark.timeout(3600)
def test_pairs_of_found_subjects(bench_folder: Path, run_job: Callable[..., CompletedProcess[str]]) -> None:
    raw = bench_folder / "found-raw"
    done = run_job("ingest", *WORLD, "--raw", str(raw), timeout_s=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = {"sample world": _quality(_of_shards(raw))}
    if os.environ.get(VARIABLE):
        measured["photographs"] = _quality([(path.parent.name, path.read_bytes()) for path in bench_photos()])
    keep(
        "found-subjects",
        {
            "command": f"{VARIABLE}=dreambooth-dev python -m pytest tests/bench -k found -s",
            "embedder": _embedder_name(),
            "default": FoundConfig().min_similarity,
            "pairs": measured,
        },
    )
    for name, found in measured.items():
        assert found["by_threshold"][str(FoundConfig().min_similarity)]["precision"] >= 0.9, name


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
