"""Training runs of the arms of test_aggregators.py, each with its evaluation, resumable below one folder."""

import json
import os
import statistics
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from lookalike.config import to_dict
from lookalike.models.presets import load_preset
from lookalike.storage import Store, open_store, read_lines
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.history import METRICS
from lookalike.training.loop_config import CheckpointConfig, DropoutConfig, ValidationConfig
from lookalike.training.workers import WorkerConfig
from pipelines.actors import ActorConfig
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.ingest.config import SampleWorldConfig
from pipelines.train.result import RESULT
from pipelines.train.run import train
from tests.bench.rendered import make_dataset

CUDA = torch.cuda.is_available()
SUBJECTS = int(os.environ.get("LOOKALIKE_BENCH_SUBJECTS", "600"))
WORLD = SampleWorldConfig(seed=73, subjects=SUBJECTS, views=5, size_px=128, bare_captions=0.6, defects=False)
HELD_OUT = 0.15
WEIGHTS = "diffusion_pytorch_model.safetensors"
MANY = 50_000  # samples of an arm from which the DiT starts from the seed, and batches are larger
SCHEDULES = ["paper", "both"]
JUDGED, LOSSES, STEPS = 48, 256, 12  # subjects with images, held-out losses, sampler steps

ARMS = {  # -> aggregator, phases
    "last_layer": ("last_layer", 2),
    "single_lap": ("single_lap", 2),
    "dla": ("dla", 2),
    "dla-single-stage": ("dla", 1),
}


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-{self.seed}"


CHOSEN = os.environ.get("LOOKALIKE_BENCH_ARMS", ",".join(ARMS)).split(",")
SEEDS = int(os.environ.get("LOOKALIKE_BENCH_SEEDS", "3"))
RUNS = [Run(arm, seed) for seed in range(SEEDS) for arm in CHOSEN]  # all arms of a seed, then the next seed


class Lab:
    """Trains and evaluates runs below the bench's folder."""

    def __init__(self, bench_folder: Path) -> None:
        assert set(CHOSEN) <= set(ARMS), f"LOOKALIKE_BENCH_ARMS={','.join(CHOSEN)}: choose from {', '.join(ARMS)}"
        self.bench_folder, self.data = bench_folder, bench_folder / f"aggregators-{SUBJECTS}"
        self.dataset = make_dataset(self.data, WORLD, HELD_OUT)

    @cached_property
    def samples(self) -> int:
        """Training samples of each run, a multiple of the batch; those of the first attempt if it measured them."""
        minutes = os.environ.get("LOOKALIKE_BENCH_MINUTES")
        if minutes is None:
            return _whole_batches(float(os.environ.get("LOOKALIKE_BENCH_SAMPLES", "100000" if CUDA else "4000")))
        measured = self.data / f"samples-of-{len(RUNS)}-runs-in-{minutes}-minutes.json"
        if not measured.exists():
            measured.write_text(json.dumps(_whole_batches(self._speed() * 60 * float(minutes) / len(RUNS))))
        return int(json.loads(measured.read_text()))

    @property
    def start(self) -> str:
        """Where the DiT starts."""
        return os.environ.get("LOOKALIKE_BENCH_START", "base" if self.samples < MANY else "scratch")

    def folder(self, run: Run) -> Path:
        """The place of a run and its evaluation."""
        return self.data / f"{self.start}-{self.samples}" / str(run)

    def make(self, run: Run) -> Store:
        """Train and evaluate a run, each unless it is done; returns the evaluation."""
        folder = self.folder(run)
        if not (folder / "run" / RESULT).exists():  # a folder that was copied from elsewhere is another run to train()
            train(self.config(run, folder / "run", self.samples, self.start == "scratch"))
        config = EvaluateConfig(
            bundle=str(folder / "run" / "bundle"),
            suite=self.dataset,
            out=str(folder / "scores"),
            max_samples=LOSSES,
            subjects=JUDGED,
            prompts_per_subject=1,
            stand_ins=0,
            stages=SCHEDULES,
            steps=STEPS,
            metrics={"diversity": False, "copying": False},
            image_batch_size=16,
            actors=ActorConfig(count=0, use_gpu=CUDA),
        )
        evaluate(config)
        return open_store(config.out)

    def config(self, run: Run, folder: Path, samples: int, from_seed: bool) -> TrainConfig:
        """The training run of an arm."""
        kind, phases = ARMS[run.arm]
        batch = batch_of(samples)
        steps = samples // batch
        return TrainConfig(
            dataset=self.dataset,
            run=str(folder),
            preset=str(self._preset(kind)),
            from_seed=from_seed,
            stages=_phases(steps, phases),
            batch_size=batch,
            micro_batch_size=batch,
            keep_samples=True,
            seed=run.seed,
            dropout=DropoutConfig(mllm=0.4, references=0.15),  # those of the shipped base
            validation=ValidationConfig(samples=0),
            checkpoint=CheckpointConfig(every=max(1, steps // 8)),
            workers=WorkerConfig(num_workers=0, use_gpu=CUDA, tf32=CUDA),
            tracking="none:",
        )

    def _preset(self, kind: str) -> Path:
        """`mini` with a fresh aggregator of this kind, of the same inner width."""
        mini = load_preset("mini").from_seed("aggregator")
        path = self.data / f"{kind}.yaml"
        path.write_text(yaml.safe_dump(to_dict(replace(mini, aggregator=replace(mini.aggregator, kind=kind)))))
        return path

    def parameters(self, arm: str) -> int:
        """Numbers of an arm's aggregator."""
        with safe_open(self.folder(Run(arm, 0)) / "run" / "bundle" / "aggregator" / WEIGHTS, "pt") as file:
            return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # it is no dict

    def last_loss(self, run: Run) -> float:
        """Mean training loss of the last tenth of the steps."""
        records = self._records(self.folder(run) / "run")
        return round(statistics.mean(each["loss"] for each in records[-max(1, len(records) // 10) :]), 4)

    @staticmethod
    def _records(folder: Path) -> list[dict[str, Any]]:
        return [each for each in read_lines(open_store(str(folder)), METRICS, "step") if "loss" in each]

    def _speed(self) -> float:
        """Samples a second of a few steps of the slowest kind."""
        folder = self.data / "speed"
        config = self.config(Run("dla", 0), folder, 6 * batch_of(0), from_seed=False)
        if not (folder / RESULT).exists():
            train(config)
        return statistics.median(
            each["images_per_second"] for each in self._records(folder)[1:]
        )  # the first step is slower


def batch_of(samples: float) -> int:
    """Samples of a step of a run."""
    return 256 if samples >= MANY else 16


def _whole_batches(samples: float) -> int:
    batch = batch_of(samples)
    return max(8, int(samples) // batch) * batch


def _phases(steps: int, number: int) -> list[PhaseConfig]:
    """The paper's 25,000 and 10,000 steps as shares of ``steps``, or one phase of all."""
    first = round(steps * 25 / 35) if number == 2 else 0
    lengths = {"mllm": first, "mllm+references": steps - first}
    return [
        PhaseConfig(
            name=name, steps=length, conditions=name, learning_rate=1e-3, warmup_steps=length // 10, final_lr_share=0.05
        )
        for name, length in lengths.items()
        if length
    ]
