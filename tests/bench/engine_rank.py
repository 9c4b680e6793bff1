"""One rank of ZeRO-3 or of PyTorch's DistributedDataParallel on the same bundle and batches: seconds of each step, as
JSON. Started by a bench.

    python engine_rank.py ENGINE RANK RANKS PORT BUNDLE BATCHES STEPS
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lookalike.bundles.load import build_model, load_model
from lookalike.bundles.manifest import read_preset
from lookalike.diffusion.flow import FlowConfig
from lookalike.models.joint import import_model_classes
from lookalike.models.vae import load_vae
from lookalike.models.weights import strict_weights
from lookalike.training.clock import StepClock
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.deepspeed_setup import prepare_process
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.objective import DenoisingObjective
from lookalike.training.optimizer import build_optimizer
from lookalike.training.workers import WorkerConfig, ZeroConfig
from lookalike.training.zero import ZeroEngine

STAGE = PhaseConfig(name="both", steps=10**6, conditions="mllm+references")


class Ddp:
    """Plain DistributedDataParallel: every rank holds the whole model, and gradients are averaged."""

    def __init__(self, bundle: Path, config: TrainConfig) -> None:
        model = load_model(bundle)
        self._parameters = list(select(model, bundle).values())
        self.model = DistributedDataParallel(model.train())
        self._optimizer = build_optimizer(self._parameters, config.optimizer)
        self._norm = config.optimizer.max_grad_norm

    def accumulate(self, loss: torch.Tensor) -> None:
        loss.backward()

    def finish_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, self._norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def set_learning_rate(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value


def select(model: Any, bundle: Path) -> dict[str, torch.nn.Parameter]:
    lora = read_preset(bundle).lora
    if lora is not None:
        model.add_lora(lora)
        model.enable_gradient_checkpointing()
    parts = ("aggregator", "transformer" if lora is None else "transformer_lora")
    learns: dict[str, torch.nn.Parameter] = model.set_trainable(parts)
    return learns


def main(name: str, rank: int, ranks: int, port: str, bundle: Path, batches: Path, steps: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    import_model_classes()
    columns = dict(np.load(batches))
    micro = len(columns["weight"])
    config = TrainConfig(
        dataset="none",
        run="none",
        batch_size=ranks * micro,
        micro_batch_size=micro,
        zero=ZeroConfig(reduce_bucket=50_000_000),  # a buffer on every rank, and both are on one machine
        workers=WorkerConfig(num_workers=ranks),
    )
    torch.manual_seed(0)
    engine: Any
    if name == "ddp":
        engine = Ddp(bundle, config)
    else:
        prepare_process(torch.device("cpu"))
        engine = ZeroEngine(
            build=lambda: build_model(bundle),
            weights=lambda model: strict_weights(model, bundle),
            select=lambda model: select(model, bundle),
            config=config,
        )
    objective = DenoisingObjective(
        engine.model, load_vae(bundle), FlowConfig.from_bundle(bundle), config.dropout, 0, torch.device("cpu")
    )
    seconds, losses = [], []
    for step in range(steps):
        engine.set_learning_rate(1e-4)
        started = time.perf_counter()
        loss = objective(MicroBatch(columns), STAGE, step).mean()
        engine.accumulate(loss)
        engine.finish_step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        print(json.dumps({"seconds": seconds, "losses": losses, "memory_gb": StepClock().peak_memory_gb()}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
        Path(sys.argv[5]),
        Path(sys.argv[6]),
        int(sys.argv[7]),
    )
