"""Training runs on a snapshot with samples that cannot be read: in one process, on two ranks, and after a kill."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.storage import open_store
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.ledger import read_ledger
from lookalike.training.loop_config import CheckpointConfig, ImagesConfig, SafetyConfig, ValidationConfig
from lookalike.training.quarantine import QUARANTINE, UnusableDataError
from lookalike.training.workers import WorkerConfig
from pipelines.train.run import train
from tests.poisoned import pack_of, write_snapshot

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(900)]

STEPS = 6
KINDS: list[str | None] = [
    *("target is no image", None, "prompt is null", "placeholder", "long caption", None, "reference is 20000x40"),
    *(None, "offset behind the end", "empty", None, "target is 1x1", "NULs", None),
]
BROKEN = {f"sample{index:03d}" for index in (0, 2, 6, 8, 11)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_snapshot(tmp_path_factory.mktemp("poisoned"), KINDS, [None, "target is no image", None, None])


def config_of(dataset: str, run: Path, workers: int = 0) -> TrainConfig:
    return TrainConfig(
        dataset=dataset,
        run=str(run),
        stages=[PhaseConfig(name="both", steps=STEPS, conditions="mllm+references", warmup_steps=1)],
        batch_size=4,
        micro_batch_size=1,
        keep_samples=True,
        validation=ValidationConfig(every=3, samples=4),
        images=ImagesConfig(count=2, every=3, steps=2),
        checkpoint=CheckpointConfig(every=3),
        workers=WorkerConfig(num_workers=workers),
        log_every=1,
        tracking="none:",
    )


def records(run: Path) -> list[tuple[int, str, float]]:
    """Losses and held-out losses by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], "loss", line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], n, v) for line in lines if "validation" in line for n, v in line["validation"].items()]
    return steps + held_out


@pytest.fixture(scope="module")
def plain(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    train(config_of(dataset, run))
    return run


def test_the_run_ends_and_its_ledger_names_what_was_left_out(plain: Path) -> None:
    ledger = read_ledger(open_store(str(plain)))
    first_epoch = [line for line in ledger if line["epoch"] == 0]
    failed = {
        entry["sample"]: (entry["slot"], line["step"]) for line in first_epoch for entry in line.get("quarantined", [])
    }
    learned = Counter(sample for line in first_epoch for sample in line["samples"])
    assert set(failed) == BROKEN
    assert set(learned) == {f"sample{index:03d}" for index in range(len(KINDS))} - BROKEN
    assert set(learned.values()) == {1}
    listed = [json.loads(line) for line in (plain / QUARANTINE).read_text().splitlines()]
    assert {record["sample"] for record in listed} == BROKEN | {"sample015"}
    for record in listed:
        assert record["reason"]
        if record["step"] >= 0:  # else held out
            assert failed[record["sample"]] == (record["slot"], record["step"])
    metrics = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    counted = {record["step"]: record.get("quarantined", 0) for record in metrics if "loss" in record}
    assert counted == {line["step"]: len(line.get("quarantined", [])) for line in ledger}


def test_a_resumed_run_leaves_out_the_same_samples(dataset: str, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "run")
    store = open_store(str(tmp_path / "run"))
    for info in list(store.list()):  # as if the machine had gone after the first checkpoint
        if info.key.startswith(("checkpoints/step-00000006", "bundle/", "result.json")):
            store.delete(info.key)
    train(config_of(dataset, tmp_path / "run"))
    assert records(tmp_path / "run") == records(plain)
    assert read_ledger(store) == read_ledger(open_store(str(plain)))
    assert sorted(store.read(QUARANTINE).splitlines()) == sorted((plain / QUARANTINE).read_bytes().splitlines())


def test_two_ranks_leave_out_the_same_samples(dataset: str, plain: Path, tmp_path: Path) -> None:
    train(config_of(dataset, tmp_path / "run", workers=2))
    for found, expected in zip(records(tmp_path / "run"), records(plain), strict=True):
        assert found[:2] == expected[:2]
        assert found[2] == pytest.approx(expected[2], abs=1e-5)
    assert read_ledger(open_store(str(tmp_path / "run"))) == read_ledger(open_store(str(plain)))


def test_too_many_end_the_run_and_raising_the_limit_resumes_it(dataset: str, plain: Path, tmp_path: Path) -> None:
    strict = replace(config_of(dataset, tmp_path / "run"), safety=SafetyConfig(max_quarantined=4))
    with pytest.raises(UnusableDataError, match=r"[56] samples cannot.*4 may be left out: sample.*quarantine.jsonl"):
        train(strict)
    train(replace(strict, safety=SafetyConfig(max_quarantined=6)))
    assert records(tmp_path / "run") == records(plain)


def test_a_shard_that_is_missing_ends_two_ranks_with_its_name(dataset: str, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    shard = tmp_path / "dataset" / pack_of(open_store(str(tmp_path / "dataset" / "v0001")))
    data = shard.read_bytes()
    shard.unlink()
    named = rf"a shard of the snapshot cannot be read.*{shard.name}.*restore it"
    with pytest.raises(UnusableDataError, match=named):  # held-out samples are read first
        train(config_of(str(tmp_path / "dataset"), tmp_path / "alone"))
    config = replace(
        config_of(str(tmp_path / "dataset"), tmp_path / "run", workers=2),
        validation=ValidationConfig(samples=0),
        images=ImagesConfig(),
    )
    with pytest.raises(UnusableDataError, match=named):
        train(config)
    shard.write_bytes(data)  # as the message says
    assert train(config)["steps"] == STEPS
