"""Training in one plain process, fed by a real Ray.

On two ranks of ZeRO-3 it runs in the demo (tests/e2e), and is compared with one process in tests/bench.
"""

import json
import re
import shutil
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from lookalike.data.images import encode_jpeg
from lookalike.data.shards import write_tar
from lookalike.errors import BusyError, ConflictError, InputError
from lookalike.models.weights import component_weights
from lookalike.storage import open_store
from lookalike.storage.lease import hold
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.epoch_plan import PADDING, EpochPlan
from lookalike.training.loop_config import CheckpointConfig, ImagesConfig, ValidationConfig
from lookalike.training.workers import WorkerConfig
from pipelines.curate import CurateConfig, curate
from pipelines.train import data, run
from pipelines.train import in_memory as kept
from pipelines.train.in_memory import kept_batches
from pipelines.train.observe import RayMetrics
from pipelines.train.run import train
from pipelines.train.samples import TripletSource
from tests.drawn import Photo, draw

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(900)]

STEPS = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A snapshot of a few drawn subjects; its last batch of an epoch is not full."""
    folder = tmp_path_factory.mktemp("train")
    photos = [
        Photo(f"thing{subject}-{view}", encode_jpeg(draw(subject, view)), f"thing{subject}")
        for subject in range(5)
        for view in range(3)
    ]
    raw = folder / "raw"
    raw.mkdir()
    write_tar(raw / "shard-000000.tar", [photo.sample() for photo in photos])
    curate(CurateConfig(raw=str(raw), dataset=str(folder / "dataset")))
    return str(folder / "dataset")


def config_of(dataset: str, run: Path, workers: int) -> TrainConfig:
    return TrainConfig(
        dataset=dataset,
        run=str(run),
        stages=[
            PhaseConfig(name="one", steps=3, conditions="mllm", warmup_steps=1),
            PhaseConfig(name="two", steps=3, conditions="mllm+references", warmup_steps=1),
        ],
        batch_size=4,
        micro_batch_size=1,  # accumulated: twice on two ranks, four times on one
        validation=ValidationConfig(every=3, samples=4),
        images=ImagesConfig(count=3, every=3, steps=2),
        checkpoint=CheckpointConfig(every=3, keep=2),
        workers=WorkerConfig(num_workers=workers),
        log_every=1,
        tracking=f"jsonl:{run}-tracking",
    )


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {record["step"]: record["loss"] for record in records if "loss" in record}
    assert sorted(found) == list(range(STEPS))
    return [found[step] for step in range(STEPS)]


@pytest.fixture(scope="module")
def plain(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of one process without DeepSpeed."""
    run = tmp_path_factory.mktemp("plain") / "run"
    train(config_of(dataset, run, workers=0))
    return run


def test_a_killed_run_resumes_from_its_checkpoint(
    dataset: str, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(plain, tmp_path / "run")
    shutil.copytree(f"{plain}-tracking", tmp_path / "run-tracking")
    store = open_store(str(tmp_path / "run"))
    for info in list(store.list()):  # as if the machine had gone after the first checkpoint
        if info.key.startswith(("checkpoints/step-00000006", "bundle/", "result.json")):
            store.delete(info.key)
    with caplog.at_level("INFO", "lookalike.training.loop"):
        result = train(config_of(dataset, tmp_path / "run", workers=0))
    assert "begins at step 3 of 6" in caplog.text  # not at 0, with the same losses
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), abs=1e-6)
    assert open_store(result["bundle_uri"]).exists("bundle.json")


def _ids(source: TripletSource) -> list[str]:
    table = source.table()
    return list(table.take(np.arange(len(table)))["triplet_id"].to_pylist())


@dataclass(frozen=True)
class SlowAtFirst(EpochPlan):
    """A plan whose first steps take long to look up: those behind them are ready before."""

    def rank_slots(self, step: int, rank: int, world_size: int, micro_batch_size: int = 1) -> npt.NDArray[np.int64]:
        time.sleep(0.3 if step < 2 else 0)
        return super().rank_slots(step, rank, world_size, micro_batch_size)


def test_two_ranks_get_their_slots_in_order_with_two_cpus(
    dataset: str, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks reserve what they do by default; what is left of two CPUs feeds them."""
    ranks = 2
    source = TripletSource(f"{dataset}/v0001", "train", f"{plain}/initial")
    plan = SlowAtFirst(len(source.table()), 4, seed=0)
    steps = range(1, 26)
    monkeypatch.setattr(data, "_STEPS_PER_DATASET", 16)
    others = ray.cluster_resources()["CPU"] - 2
    taken = placement_group([{"CPU": others + ranks * WorkerConfig().cpus_per_worker}])
    ray.get(taken.ready(), timeout=60)
    ids = _ids(source)
    streams = [data.rank_batches(source, plan, steps, rank, ranks, 4 // ranks) for rank in range(ranks)]
    for step, batches in zip(steps, zip(*streams, strict=True), strict=True):
        for rank, batch in enumerate(batches):
            slots = EpochPlan.rank_slots(plan, step, rank, ranks)
            assert batch["step"].tolist() == [step] * (4 // ranks)
            assert batch["sample_id"].tolist() == [ids[max(0, slot)] for slot in slots]
            assert batch["weight"].tolist() == [float(slot != PADDING) for slot in slots]
    remove_placement_group(taken)


def test_samples_that_are_kept_are_those_that_ray_prepares(
    dataset: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    prepare_rows = kept.prepare
    monkeypatch.setattr(kept, "prepare", lambda source, rows: [prepared.extend(rows), prepare_rows(source, rows)][1])
    train(replace(config_of(dataset, tmp_path / "run", workers=0), keep_samples=True))
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), abs=1e-6)
    assert len(prepared) == len(set(prepared)), "a sample was prepared again"


def test_a_plain_process_trains_in_half_precision(dataset: str, plain: Path, tmp_path: Path) -> None:
    half = replace(config_of(dataset, tmp_path / "run", workers=0), keep_samples=True, precision="bfloat16")
    train(half)
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), rel=0.02)
    assert losses(tmp_path / "run") != pytest.approx(losses(plain), rel=1e-6)


def test_a_lora_on_the_mllm_learns_on_two_ranks_as_in_one_process(
    dataset: str, plain: Path, tmp_path: Path, mllm_lora_preset: Callable[..., str]
) -> None:
    preset = mllm_lora_preset(rank=4, target_modules=["q_proj", "v_proj"])
    for workers in (0, 2):
        run = tmp_path / str(workers)
        train(replace(config_of(dataset, run, workers), preset=preset, keep_samples=True, images=ImagesConfig()))
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "0"), abs=1e-5)
    assert losses(tmp_path / "0") != pytest.approx(losses(plain), abs=1e-5)
    kept, *exported = (
        dict(component_weights(run)) for run in (plain / "initial", *(tmp_path / w / "bundle" for w in "02"))
    )
    changed = {name for name in kept if name.startswith("mllm.") and not torch.equal(kept[name], exported[0][name])}
    assert changed == {name for name in kept if re.search(r"language_model.*\.[qv]_proj\.weight", name)}
    for name in changed:
        torch.testing.assert_close(exported[1][name], exported[0][name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("many", [4096, 1])
def test_two_ranks_get_their_slots_from_memory(
    dataset: str, plain: Path, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``many=1``: the epoch was prepared in other processes before the first step."""
    monkeypatch.setattr(kept, "_MANY", many)
    source = TripletSource(f"{dataset}/v0001", "train", f"{plain}/initial")
    plan = EpochPlan(len(source.table()), 4, seed=0)
    ids = _ids(source)
    steps = range(1, 2 * plan.steps_per_epoch)
    for rank in range(2):
        for number, batch in enumerate(kept_batches(source, plan, steps, rank, 2, 1)):
            step, slot = steps[number // 2], plan.rank_slots(steps[number // 2], rank, 2)[number % 2]
            assert batch["step"].tolist() == [step]
            assert batch["sample_id"].tolist() == [ids[max(0, slot)]]
            assert batch["weight"].tolist() == [float(slot != PADDING)]


def test_more_references_than_the_preset_takes_are_refused_before_anything_starts(
    dataset: str, plain: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(plain / "initial", bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["preset"]["references"]["max_references"] = 1
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="up to 2 references, the preset mini takes 1"):
        run.references_fit(TripletSource(f"{dataset}/v0001", "train", str(bundle)))


def test_concurrent_trainer_is_rejected(dataset: str, tmp_path: Path) -> None:
    with hold(open_store(str(tmp_path / "run")).child("lease")), pytest.raises(BusyError, match="working here since"):
        train(config_of(dataset, tmp_path / "run", workers=0))


def test_held_out_samples_are_shown_the_conditions_of_others(plain: Path) -> None:
    """Also if a micro batch is one sample."""
    records = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    gaps = [record["validation"]["loss_gap"] for record in records if "validation" in record]
    assert len(gaps) == 2
    assert all(gap != 0 for gap in gaps)


def test_the_run_is_recorded_in_the_tracker(plain: Path) -> None:
    (events,) = Path(f"{plain}-tracking").rglob("events.jsonl")
    logged = [json.loads(line) for line in events.read_text().splitlines()]
    names = {name for event in logged for name in event.get("metrics", {})}
    assert {"train/loss", "train/tokens_per_second", "train/backward_seconds", "train/goodput"} <= names
    assert any(name.startswith("validation/loss_sigma_") for name in names)
    pictures = sorted(path.name for path in (events.parent / "artifacts" / "samples").iterdir())
    assert pictures == ["step-00000003.png", "step-00000006.png"]


def scraped(run: str) -> dict[str, float]:
    """What Prometheus would read of ``run`` on this node: value by metric."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=5) as response:
        lines = response.read().decode().splitlines()
    rows = (line.rsplit(" ", 1) for line in lines if line.startswith("ray_lookalike_train_") and f'run="{run}"' in line)
    return {name.partition("{")[0].removeprefix("ray_lookalike_train_"): float(value) for name, value in rows}


def test_prometheus_reads_the_metrics_of_the_last_step() -> None:
    listener, expected = RayMetrics("file:///runs/scraped"), {"step", "loss", "validation_loss_gap", "steps_total"}
    for step in range(3):
        listener(step + 1, {"loss": 2.0 - step, "step_seconds": 0.5, "images_per_second": 8.0})
    listener(3, {"validation_loss_gap": 0.25})
    deadline = time.monotonic() + 90  # Ray's workers report every few seconds
    while not expected <= (found := scraped("file:///runs/scraped")).keys():
        assert time.monotonic() < deadline, f"only {sorted(found)}"
        time.sleep(1)
    assert (found["step"], found["loss"], found["validation_loss_gap"]) == (3, 0, 0.25)
    assert (found["steps_total"], found["images_total"]) == (3, 12)


def test_a_finished_run_returns_at_once_and_another_configuration_is_rejected(dataset: str, plain: Path) -> None:
    with hold(open_store(str(plain)).child("lease")):  # at once: before it asks for the lease
        assert train(config_of(dataset, plain, workers=0))["steps"] == STEPS
    other = config_of(dataset, plain, workers=0)
    with pytest.raises(ConflictError, match="seed"):
        train(TrainConfig(**{**other.__dict__, "seed": 1}))
