"""ZeRO-3 on two Gloo ranks against the plain engine: weights, moments and their average, step by step and resumed.

In float32 and in bfloat16, and with its state offloaded (on CPUs from memory to memory, by the same code).
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.cpp_extension import _get_build_directory

from lookalike.training.average import EmaConfig
from lookalike.training.config import TrainConfig
from lookalike.training.deepspeed_setup import prepare_process
from lookalike.training.engine import Engine, PlainEngine
from lookalike.training.optimizer import OptimizerConfig
from lookalike.training.workers import WorkerConfig, ZeroConfig
from lookalike.training.zero import ZeroEngine

pytestmark = pytest.mark.timeout(900)

RANKS, MICRO, STEPS = 2, 2, 4
BATCH = 2 * RANKS * MICRO  # two micro batches on each rank
OPTIMIZER, EMA = OptimizerConfig(), EmaConfig(decay=0.9)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    model[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.detach().clone() for name, tensor in build().state_dict().items()}


def inputs_of(step: int) -> Tensor:
    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))


def train(engine: Engine, first: int, share: slice = slice(None), micro: int = MICRO) -> list[float]:
    """``STEPS`` steps on a share of each batch; the mean losses of that share."""
    means = []
    dtype = next(engine.model.parameters()).dtype
    for step in range(first, first + STEPS):
        engine.set_learning_rate(0.05)
        losses = []
        for part in inputs_of(step)[share].split(micro):
            loss = engine.model(part.to(dtype)).float().square().mean()
            engine.accumulate(loss)
            losses.append(float(loss))
        engine.finish_step()
        means.append(sum(losses) / len(losses))
    return means


@torch.no_grad()
def outputs(engine: Engine) -> dict[str, Tensor]:
    probe = inputs_of(99).to(next(engine.model.parameters()).dtype)
    with engine.averaged():
        averaged = engine.model(probe).clone()
    return {"outputs/averaged": averaged, "outputs/trained": engine.model(probe).clone()}


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig(
        dataset="none",
        run="none",
        batch_size=BATCH,
        micro_batch_size=MICRO,
        optimizer=OPTIMIZER,
        ema=EMA,
        workers=WorkerConfig(num_workers=RANKS),
        **changes,
    )


CONFIGS = {
    "float32": config_of(),
    "bfloat16": config_of(precision="bfloat16"),
    "offloaded": config_of(zero=ZeroConfig(offload="optimizer+parameters")),
    "offloaded bfloat16": config_of(precision="bfloat16", zero=ZeroConfig(offload="optimizer")),
}


def rank_main(rank: int, port: int, folder: Path) -> None:
    """With each configuration half of the steps, what came of it saved, and the rest by the same engine and by a second
    one that takes it up."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK="0")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    prepare_process(torch.device("cpu"))
    share = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)

    def save(name: str, engine: ZeroEngine, losses: list[float]) -> None:
        found = {**dict(engine.state()), **outputs(engine), "outputs/losses": torch.tensor(losses)}
        if rank == 0:
            save_file({key: tensor.contiguous() for key, tensor in found.items()}, folder / name)
        torch.distributed.barrier()

    # What does not learn is no part of a checkpoint.
    other = {**{n: torch.zeros_like(t) for n, t in weights().items()}, "0.bias": weights()["0.bias"]}
    for name, config in CONFIGS.items():
        first = ZeroEngine(build, lambda _: weights().items(), trainable, config)
        save(f"{name} half", first, train(first, 0, share))
        save(f"{name} whole", first, train(first, STEPS, share))
        second = ZeroEngine(build, lambda _: other.items(), trainable, config)
        second.load_state(state_in(folder / f"{name} half"), optimizer_steps=STEPS)
        save(f"{name} resumed", second, train(second, STEPS, share))
    torch.distributed.destroy_process_group()


def state_in(path: Path) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in load_file(path).items() if not key.startswith("outputs/")}


def plain() -> PlainEngine:
    model = build()
    model.load_state_dict(weights())
    return PlainEngine(model, trainable(model), OPTIMIZER, BATCH // MICRO, EMA)


def in_ranks(function: Any, *arguments: Any) -> None:
    """Run ``function(rank, port, …)`` as two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(function, (port, *arguments), nprocs=RANKS)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks saved."""
    folder = tmp_path_factory.mktemp("ranks")
    in_ranks(rank_main, folder)
    return folder


@pytest.fixture(scope="module")
def one_process() -> dict[str, dict[str, Tensor]]:
    """State and outputs of the plain engine, half-way and at the end."""
    engine, found = plain(), {}
    for name, first in (("half", 0), ("whole", STEPS)):
        train(engine, first)
        found[name] = {**dict(engine.state()), **outputs(engine)}
    return found


@pytest.mark.parametrize("name", ["float32", "offloaded"])
def test_two_ranks_keep_the_weights_moments_and_average_of_one_process(
    two_ranks: Path, one_process: dict[str, dict[str, Tensor]], name: str
) -> None:
    for part, expected in (("half", "half"), ("whole", "whole"), ("resumed", "whole")):
        found = load_file(two_ranks / f"{name} {part}")
        del found["outputs/losses"]
        torch.testing.assert_close(found, one_process[expected], rtol=1e-5, atol=1e-6, msg=f"{name} {part}")
    assert not torch.equal(found["ema/0.weight"], found["master/0.weight"])


def test_one_process_resumes_the_checkpoint_of_two_ranks(
    two_ranks: Path, one_process: dict[str, dict[str, Tensor]]
) -> None:
    alone = plain()
    alone.load_state(state_in(two_ranks / "float32 half"), optimizer_steps=STEPS)
    train(alone, STEPS)
    found = {**dict(alone.state()), **outputs(alone)}
    torch.testing.assert_close(found, one_process["whole"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bfloat16", "offloaded bfloat16"])
def test_bfloat16_trains_on_float32_master_weights_and_resumes_exactly(
    two_ranks: Path, one_process: dict[str, dict[str, Tensor]], name: str
) -> None:
    half, whole, resumed = (load_file(two_ranks / f"{name} {part}") for part in ("half", "whole", "resumed"))
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    assert whole["outputs/losses"][-1] < half["outputs/losses"][0]
    for key in ("master/0.weight", "exp_avg/0.weight", "ema/0.weight"):
        assert whole[key].dtype == torch.float32
        assert not torch.equal(whole[key], whole[key].bfloat16().float()), f"{key} is rounded"
    assert whole["outputs/trained"].dtype == torch.bfloat16
    # eight significant bits: near what float32 learns, and not the same
    torch.testing.assert_close(whole["master/0.weight"], one_process["whole"]["master/0.weight"], rtol=0, atol=0.03)


_LOADS = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
from lookalike.training.deepspeed_setup import load_operator
load_operator()
"""


def test_the_lock_of_a_killed_compilation_does_not_block(tmp_path: Path) -> None:
    name = "deepspeed_shm_comm"
    shutil.copytree(_get_build_directory(name, verbose=False), tmp_path / name)  # compiled by `make setup`
    mark = tmp_path / name / "lock"
    mark.touch()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _LOADS], env=environment, check=True, timeout=200)
    assert not mark.exists()
