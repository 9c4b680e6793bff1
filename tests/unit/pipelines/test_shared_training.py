"""Runs of several threads in shared passes: bundles as alone, errors to the thread that they belong to."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lookalike.bundles.build import materialise
from lookalike.bundles.transfer import verified_reference
from lookalike.errors import ConfigError, StoppedError
from lookalike.models.presets import LoraConfig, load_preset
from lookalike.storage import open_store
from lookalike.training import stopping
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop import TrainingDivergedError
from lookalike.training.loop_config import CheckpointConfig, SafetyConfig, ValidationConfig
from lookalike.training.workers import WorkerConfig
from pipelines.train.run import train
from pipelines.train.shared import SharedTrainer
from tests.poisoned import write_snapshot

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("base") / "bundle")


@pytest.fixture
def trainer(base: Path) -> Iterator[SharedTrainer]:
    opened = SharedTrainer(str(base), verified_reference(str(base)).sha256)
    yield opened
    opened.close()


@pytest.fixture
def run_of(base: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def config(name: str, number: int, **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "dataset": write_snapshot(tmp_path / f"data-{number}", [None] * (3 + number)),
            "run": str(tmp_path / name),
            "base": str(base),
            "adapter": LoraConfig(rank=2 << number),
            "stages": [PhaseConfig(name="only", steps=3 + number, conditions="mllm+references", warmup_steps=1)],
            "batch_size": 2,
            "micro_batch_size": 2,
            "seed": number,
            "keep_samples": True,
            "validation": ValidationConfig(samples=0),
            "checkpoint": CheckpointConfig(every=2),
            "workers": WorkerConfig(num_workers=0),
            "tracking": "none:",
        }
        return TrainConfig(**(settings | changes))

    return config


def adapter(result: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder = Path(open_store(result["bundle_uri"]).uri.removeprefix("file://"))
    return load_file(next(folder.rglob("*adapter*.safetensors")))


def test_bundles_are_those_of_runs_alone(trainer: SharedTrainer, run_of: Callable[..., TrainConfig]) -> None:
    alone = [adapter(train(run_of(f"alone-{number}", number))) for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        results = threads.map(lambda number: train(run_of(f"shared-{number}", number), trainer.fit), range(3))
        for found, expected in zip(map(adapter, results), alone, strict=True):
            assert found.keys() == expected.keys()
            difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
            assert difference.norm() < 1e-4 * torch.cat([value.flatten() for value in expected.values()]).norm()


def test_an_error_reaches_its_own_thread(trainer: SharedTrainer, run_of: Callable[..., TrainConfig]) -> None:
    diverging = run_of("diverging", 1, safety=SafetyConfig(max_loss=1e-6))
    with ThreadPoolExecutor(2) as threads:
        fails, works = (threads.submit(train, each, trainer.fit) for each in (diverging, run_of("fine", 2)))
        with pytest.raises(TrainingDivergedError):
            fails.result()
        assert works.result()["steps"] == 5


def test_a_stopped_run_leaves_the_others_and_resumes(
    trainer: SharedTrainer, run_of: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_POLL_S", 0.01)
    long = PhaseConfig(name="only", steps=200, conditions="mllm+references", warmup_steps=1)
    stopped, beside = run_of("stopped", 0, stages=[long]), run_of("beside", 2)
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(train, each, trainer.fit) for each in (stopped, beside))
        assert second.result()["steps"] == 5
        open_store(stopped.run).write(stopping.STOP, b"")
        with pytest.raises(StoppedError, match="with a checkpoint"):
            first.result()
    assert not (Path(stopped.run) / "result.json").exists()
    assert list((Path(stopped.run) / "checkpoints").iterdir())


def test_what_cannot_share_a_pass_is_refused(trainer: SharedTrainer, run_of: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="one process in float32"):
        train(run_of("ranks", 0, micro_batch_size=1, workers=WorkerConfig(num_workers=2)), trainer.fit)
    with pytest.raises(ConfigError, match="depend on the adapters beside it"):
        train(run_of("dropout", 0, adapter=LoraConfig(rank=2, dropout=0.1)), trainer.fit)
