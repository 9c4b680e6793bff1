"""Fifty steps of ZeRO-3 on two Gloo ranks against one plain process: losses, held-out losses and exported weights.

    python -m pytest tests/bench/test_zero_equals_plain.py -s

Writes results/zero-equals-plain.json. Both stages, gradient accumulation, one or two references a sample, EMA; both
start from the shipped weights, which the ranks load from disk. Then two ranks go on where the process was half-way.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.storage import open_store
from lookalike.training.average import EmaConfig
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop_config import CheckpointConfig, ValidationConfig
from lookalike.training.workers import WorkerConfig
from pipelines.curate import CurateConfig, curate
from pipelines.train.run import train
from tests.bench.measured import keep
from tests.drawn import world, write_raw

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(3600)]

STEPS = (25, 25)


def config_of(dataset: Path, run: Path, workers: int) -> TrainConfig:
    return TrainConfig(
        dataset=str(dataset),
        run=str(run),
        stages=[
            PhaseConfig(name="one", steps=STEPS[0], conditions="mllm", warmup_steps=5),
            PhaseConfig(name="two", steps=STEPS[1], conditions="mllm+references", warmup_steps=5),
        ],
        batch_size=8,
        micro_batch_size=2,
        validation=ValidationConfig(every=25, samples=8),
        checkpoint=CheckpointConfig(every=25, keep=2),
        ema=EmaConfig(decay=0.9),
        workers=WorkerConfig(num_workers=workers),
        tracking=f"jsonl:{run}-tracking",
    )


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [value for _, value in sorted({r["step"]: r["loss"] for r in records if "loss" in r}.items())]


def resumed_on_two_ranks(plain: Path, dataset: Path, run: Path) -> list[float]:
    """The losses of a run that one process brought to half its steps and two ranks to its end."""
    shutil.copytree(plain, run)
    shutil.copytree(f"{plain}-tracking", f"{run}-tracking")
    store = open_store(str(run))
    for info in list(store.list()):  # as if the machine had gone after the first checkpoint
        if info.key.startswith(("checkpoints/step-00000050", "bundle/", "result.json")):
            store.delete(info.key)
    train(config_of(dataset, run, workers=2))
    return losses(run)


def test_fifty_steps_are_equal(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(8, 4))
    curate(CurateConfig(raw=str(raw), dataset=str(tmp_path / "dataset")))
    found: dict[int, list[dict[str, Any]]] = {}
    weights: dict[int, dict[str, torch.Tensor]] = {}
    for workers in (0, 2):
        run = tmp_path / f"run-{workers}"
        result = train(config_of(tmp_path / "dataset", run, workers))
        found[workers] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        pipe = SubjectPipeline.from_pretrained(result["bundle_uri"].removeprefix("file://"))
        weights[workers] = {**pipe.transformer.state_dict(), **pipe.aggregator.state_dict()}

    def largest(key: str) -> float:
        pairs = zip(found[0], found[2], strict=True)
        return max(abs(plain[key] - zero[key]) for plain, zero in pairs if key in plain)

    resumed = resumed_on_two_ranks(tmp_path / "run-0", tmp_path / "dataset", tmp_path / "run-resumed")
    pairs = [(a["validation"], b["validation"]) for a, b in zip(found[0], found[2], strict=True) if "validation" in a]
    record = {
        "command": "python -m pytest tests/bench/test_zero_equals_plain.py -s",
        "steps": sum(STEPS),
        "losses": [round(row["loss"], 6) for row in found[0] if "loss" in row],
        "largest_difference_of_a_loss": largest("loss"),
        "largest_difference_of_a_loss_resumed_on_two_ranks": max(
            abs(a - b) for a, b in zip(losses(tmp_path / "run-0"), resumed, strict=True)
        ),
        "largest_difference_of_a_held_out_loss": max(abs(a[key] - b[key]) for a, b in pairs for key in a),
        "largest_difference_of_an_exported_weight": max(
            float((weights[0][name] - weights[2][name]).abs().max()) for name in weights[0]
        ),
    }
    keep("zero-equals-plain", record)
    assert len(record["losses"]) == 50
    assert len(pairs) >= 2
    assert record["largest_difference_of_a_loss"] < 1e-5
    assert record["largest_difference_of_a_loss_resumed_on_two_ranks"] < 1e-3
    assert record["largest_difference_of_a_held_out_loss"] < 1e-5
