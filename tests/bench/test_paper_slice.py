"""A dry run of the paper's size: its plan, its DeepSpeed configuration, and the whole worker loop on a slice of it.

    python -m pytest tests/bench/test_paper_slice.py -s

The slice has the paper's widths and classes in one block of each kind and random weights (``paper_slice.py``); two
ranks of ZeRO-3 train it for three steps in both stages with the precision and the activation checkpointing of
``jobs/configs/train-paper.yaml``, save, export and verify. Writes results/paper-slice.json.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike import config as configs
from lookalike.models.presets import load_preset
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop_config import CheckpointConfig, ValidationConfig
from lookalike.training.workers import WorkerConfig, ZeroConfig
from lookalike.training.zero import check_schema, zero3_config
from pipelines.curate import CurateConfig, curate
from pipelines.curate import config as curation
from pipelines.train.cost_report import PlanConfig, plan
from pipelines.train.run import train
from tests.bench.measured import keep
from tests.bench.memory import PeakMemory
from tests.bench.paper_slice import PIXELS, slice_of
from tests.drawn import world, write_raw

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(3600)]

PAPER = "jobs/configs/train-paper.yaml"


@pytest.mark.parametrize("gpus", ["8x80", "64x80"])
def test_training_of_the_paper_is_planned_and_accepted(gpus: str) -> None:
    config = configs.parse(PlanConfig, [f"--config={PAPER}", f"--gpus={gpus}"])
    started = time.perf_counter()
    text = plan(config)
    share = config.batch_size // config.cluster.gpus  # the plan finds the micro batch; as configured it is for 8 GPUs
    ours = zero3_config(replace(config, micro_batch_size=min(config.micro_batch_size, share)), config.cluster.gpus)
    check_schema(ours)
    keep(
        "paper-slice",
        {
            "command": f"python jobs/train.py plan --config {PAPER} --gpus {gpus}",
            "plan": text[text.index("Training on") :].splitlines(),
            "deepspeed": ours,
            "seconds": round(time.perf_counter() - started, 1),
        },
        part=f"plan {gpus}",
    )
    assert "Offload to the host: none needed." in text


def test_loop_runs_on_a_slice_of_the_papers_widths(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(4, 3))
    one = curation.PlanConfig(max_references=1)  # as the slice takes
    curate(CurateConfig(raw=str(raw), dataset=str(tmp_path / "dataset"), plan=one))
    paper = configs.parse(PlanConfig, [f"--config={PAPER}"])
    preset = slice_of(tmp_path)
    config = TrainConfig(
        dataset=str(tmp_path / "dataset"),
        run=str(tmp_path / "run"),
        preset=str(preset),
        stages=[
            PhaseConfig(name="mllm", steps=1, conditions="mllm", learning_rate=1e-4, warmup_steps=0),
            PhaseConfig(
                name="mllm+references", steps=2, conditions="mllm+references", learning_rate=1e-4, warmup_steps=0
            ),
        ],
        batch_size=4,
        micro_batch_size=1,
        activation_checkpointing=paper.activation_checkpointing,
        precision=paper.precision,
        # buffers that every rank has, and here all are on one machine
        zero=ZeroConfig(reduce_bucket=50_000_000, max_live=100_000_000),
        validation=ValidationConfig(every=3, samples=2),
        checkpoint=CheckpointConfig(every=3),
        workers=WorkerConfig(num_workers=2),
        log_every=1,
        tracking=f"jsonl:{tmp_path}/tracking",
    )
    started = time.perf_counter()
    with PeakMemory(os.getpid()) as peak:
        result = train(config)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    bundle = Path(result["bundle_uri"].removeprefix("file://"))
    keep(
        "paper-slice",
        {
            "command": "python -m pytest tests/bench/test_paper_slice.py -s -k loop",
            "widths": {"dit": 3072, "mllm": 3584, "context": 4096, "aggregator": 1536, "lora": 512, "pixels": PIXELS},
            "precision": config.precision,
            "losses": [step["loss"] for step in steps],
            "gradient_norms": [step["gradient_norm"] for step in steps],
            "seconds of each step": [
                {name: round(value, 2) for name, value in step.items() if name.endswith("_seconds")} for step in steps
            ],
            "peak_memory_gb_of_the_first_rank": round(steps[-1]["peak_memory_gb"], 2),
            "peak_memory_gb_of_all": round(peak.tree / 1e9, 2),
            "seconds_of_the_run": round(time.perf_counter() - started, 1),
            "bundle_gb": round(sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e9, 2),
            "held_out": records[-1]["validation"],
        },
        part="loop",
    )
    assert len(steps) == 3
    assert all(step["gradient_norm"] > 0 for step in steps)
    assert load_preset(preset).lora is not None
    assert (bundle / "transformer_lora").is_dir()
