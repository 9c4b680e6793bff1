"""ZeRO-3 on two Gloo ranks against the plain engine: weights, moments and their average, step by step and resumed."""

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

from lookalike.training.config import EmaConfig, OptimizerConfig
from lookalike.training.engine import Engine, PlainEngine
from lookalike.training.zero import ZeroEngine, prepare_process

pytestmark = pytest.mark.timeout(300)

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
    for step in range(first, first + STEPS):
        engine.set_learning_rate(0.05)
        losses = []
        for part in inputs_of(step)[share].split(micro):
            loss = engine.model(part).square().mean()
            engine.accumulate(loss)
            losses.append(float(loss))
        engine.finish_step()
        means.append(sum(losses) / len(losses))
    return means


@torch.no_grad()
def outputs(engine: Engine) -> dict[str, Tensor]:
    probe = inputs_of(99)
    with engine.averaged():
        averaged = engine.model(probe).clone()
    return {"outputs/averaged": averaged, "outputs/trained": engine.model(probe).clone()}


def rank_main(rank: int, port: int, folder: Path) -> None:
    """Half of the steps, what came of it saved, and the rest by a second engine that takes it up."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK="0")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    prepare_process(torch.device("cpu"))
    share = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)

    def engine_with(start: dict[str, Tensor]) -> ZeroEngine:
        return ZeroEngine(
            build, lambda _: start.items(), trainable, OPTIMIZER, micro_batch_size=MICRO, accumulation=2, ema=EMA
        )

    def save(name: str, engine: ZeroEngine) -> None:
        found = {**dict(engine.state()), **outputs(engine)}
        if rank == 0:
            save_file({key: tensor.contiguous() for key, tensor in found.items()}, folder / name)
        torch.distributed.barrier()

    first = engine_with(weights())
    train(first, 0, share)
    save("half", first)
    # What does not learn is no part of a checkpoint.
    second = engine_with({**{n: torch.zeros_like(t) for n, t in weights().items()}, "0.bias": weights()["0.bias"]})
    second.load_state(state_in(folder / "half"), optimizer_steps=STEPS)
    train(second, STEPS, share)
    save("whole", second)
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


def test_two_ranks_keep_the_weights_moments_and_average_of_one_process(tmp_path: Path) -> None:
    in_ranks(rank_main, tmp_path)
    engine = plain()
    for name, first in (("half", 0), ("whole", STEPS)):
        train(engine, first)
        expected = {**dict(engine.state()), **outputs(engine)}
        torch.testing.assert_close(load_file(tmp_path / name), expected, rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(expected["ema/0.weight"], expected["master/0.weight"])
    alone = plain()  # from two ranks to one
    alone.load_state(state_in(tmp_path / "half"), optimizer_steps=STEPS)
    train(alone, STEPS)
    torch.testing.assert_close(dict(alone.state()), dict(engine.state()), rtol=1e-5, atol=1e-6)


_LOADS = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
from lookalike.training.zero import load_operator
load_operator()
"""


def test_the_mark_of_a_killed_compilation_keeps_nobody_waiting(tmp_path: Path) -> None:
    name = "deepspeed_shm_comm"
    shutil.copytree(_get_build_directory(name, verbose=False), tmp_path / name)  # compiled by `make setup`
    mark = tmp_path / name / "lock"
    mark.touch()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _LOADS], env=environment, check=True, timeout=200)
    assert not mark.exists()
