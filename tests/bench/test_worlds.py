"""Curate other worlds with other names, compare with the truth, and run the gate on the shipped base.

    python -m pytest tests/bench/test_worlds.py -s        # about four minutes a world on two cores

Writes results/worlds.json. The base is the shipped one, which saw none of these worlds.
"""

import dataclasses
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow.parquet as pq
import pytest

from lookalike.bundles.build import materialise
from lookalike.data.shards import BrokenTarError, iter_samples, open_object, write_tar
from lookalike.evaluation.gate import GateConfig, decide
from lookalike.evaluation.scores import Scores
from lookalike.models.presets import load_preset
from lookalike.storage import open_store
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
}
SUBJECTS = 96

RunJob = Callable[..., CompletedProcess[str]]
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("base") / "bundle")


@pytest.mark.parametrize(("seed", "renamed"), [(0, False), (1, False), (0, True)], ids=["seed0", "seed1", "renamed"])
def test_world(seed: int, renamed: bool, base: Path, tmp_path: Path, run_job: RunJob) -> None:
    def run(name: str, *arguments: str) -> None:
        done = run_job(name, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    world = ["--sample.seed", str(seed), "--sample.subjects", str(SUBJECTS)]
    run("ingest", "--source", "sample", "--raw", "raw", *world)
    truth = json.loads((tmp_path / "raw" / "_truth.json").read_text())
    if renamed:
        _rename(tmp_path / "raw")
    run("curate", "run", "--raw", "raw", "--dataset", "dataset")
    record: dict[str, Any] = {"seed": seed, "renamed": renamed, "curation": _curation(tmp_path / "dataset", truth)}
    for conditions in ("right", "shuffled"):
        started = time.monotonic()
        suite = ("run", "--bundle", str(base), "--suite", "dataset", "--conditions", conditions, "--out", conditions)
        run("evaluate", *suite, "--max_samples", "256", "--subjects", "16", "--stages", "[paper]", "--steps", "12")
        scores = Scores.from_json((tmp_path / conditions / "scores.json").read_bytes(), conditions)
        as_if_right = dataclasses.replace(scores, conditions="right")  # do the metrics alone reveal it?
        record[conditions] = {
            "promoted": decide(scores, None, GateConfig()).passed,
            "promoted_by_figures_alone": decide(as_if_right, None, GateConfig()).passed,
            "seconds": round(time.monotonic() - started),
            **{
                name: {key: round(value, 4) for key, value in dataclasses.asdict(scores.metrics[name]).items()}
                for name in ("loss_right", "loss_shuffled", "loss_gap", "identity", "identity_margin")
            },
        }
    keep("worlds", record, f"seed {seed}{', renamed' if renamed else ''}")
    assert record["curation"]["false_drops"] == 0
    assert record["curation"]["missed"] == {}
    assert record["right"]["promoted"]
    assert record["right"]["loss_gap"]["low"] > 0
    assert not record["shuffled"]["promoted"]
    assert not record["shuffled"]["promoted_by_figures_alone"]


def _rename(raw: Path) -> None:
    """Call every subject by a hash of its name, in its metadata."""
    for path in sorted(raw.glob("*.tar")):
        samples = []
        try:
            for sample, members in iter_samples(open_object(open_store(str(raw)), _info(raw, path.name))):
                meta = json.loads(members["json"])
                meta["subject"] = hashlib.sha256(meta["subject"].encode()).hexdigest()[:12]
                samples.append((sample.key, {**members, "json": json.dumps(meta).encode()}))
        except BrokenTarError:
            continue  # a broken shard stays as it is
        buffer = io.BytesIO()
        write_tar(buffer, samples)
        path.write_bytes(buffer.getvalue())


def _info(raw: Path, key: str) -> Any:
    return next(info for info in open_store(str(raw)).list() if info.key == key)


def _curation(dataset: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """Compare dropped photos with planted ones."""
    rows = pq.read_table(dataset / "v0001" / "images", columns=["key", "drop_reason"]).to_pylist()
    counts = json.loads((dataset / "v0001" / "manifest.json").read_text())["counts"]
    assert counts["images_in"] == counts["images_kept"] + sum(counts["dropped"].values())
    found = {row["key"]: row["drop_reason"] for row in rows if row["key"] in truth["photos"]}
    missed: Counter[str] = Counter()
    false_drops = 0
    for key, reason in found.items():
        planted = truth["photos"][key]["defect"]
        if planted and reason != REASONS[planted]:
            missed[f"{planted} is {reason}"] += 1
        false_drops += not planted and reason is not None
    return {
        "images_in": counts["images_in"],
        "images_kept": counts["images_kept"],
        "dropped": counts["dropped"],
        "planted": dict(Counter(entry["defect"] for entry in truth["photos"].values() if entry["defect"])),
        "missed": dict(missed),
        "false_drops": false_drops,
    }
