"""The training loop: the same lines for ZeRO-3 ranks and for one plain process."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lookalike.errors import LookalikeError
from lookalike.storage import Store
from lookalike.training import checkpoint
from lookalike.training.config import StageConfig, TrainConfig
from lookalike.training.curriculum import ends_stage, learning_rate, stage_at
from lookalike.training.engine import Engine
from lookalike.training.history import History
from lookalike.training.plan import EpochPlan

log = logging.getLogger(__name__)

Columns = Mapping[str, np.ndarray]
Objective = Callable[[Columns, StageConfig, int], Tensor]
"""(prepared columns, stage, epoch) → loss of each sample, float32 ``[B]``."""
Validation = Callable[[StageConfig], dict[str, float]]
"""Held-out figures for a stage; a collective: every rank calls it."""


class TrainingDivergedError(LookalikeError):
    """The loss is no finite number any more."""


@dataclass(frozen=True)
class Rank:
    """Which share of each step this process computes."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all have computed."""
        return self.index == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks; a collective."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
        return [float(value) for value in total]


@dataclass(frozen=True)
class Loop:
    """Everything a rank needs to train; :meth:`run` does it."""

    config: TrainConfig
    rank: Rank
    engine: Engine
    objective: Objective
    validation: Validation
    plan: EpochPlan
    store: Store
    history: History
    fingerprint: str
    base_sha256: str

    def run(self, batches: Iterator[Columns]) -> None:
        """Train from the last complete checkpoint to the end of the curriculum."""
        step = self._resume()
        config = self.config
        accumulation = config.batch_size // (config.micro_batch_size * self.rank.count)
        with torch.enable_grad():
            while step < config.total_steps:
                index, stage, position = stage_at(config.stages, step)
                self.engine.set_learning_rate(learning_rate(stage, position))
                figures = self._step(batches, stage, step, accumulation)
                figures.update(stage=stage.name, stage_index=index, learning_rate=learning_rate(stage, position))
                self.history.add(step, figures)
                last_of_stage = ends_stage(config.stages, step)
                step += 1
                if config.validation.samples and (last_of_stage or step % config.validation.every == 0):
                    with torch.no_grad():
                        held_out = self.validation(stage)
                    self.history.add_validation(step - 1, stage.name, held_out)
                if step % config.log_every == 0 or step == config.total_steps:
                    self.history.flush(step)
                if step % config.checkpoint.every == 0 or step == config.total_steps:
                    self._save(step)

    def _step(self, batches: Iterator[Columns], stage: StageConfig, step: int, accumulation: int) -> dict[str, Any]:
        started, waited, loss_sum = time.perf_counter(), 0.0, 0.0
        epoch = self.plan.epoch_of(step)
        real_samples = int((self.plan.slots(step) >= 0).sum())
        sample_ids: list[str] = []
        for _ in range(accumulation):
            before = time.perf_counter()
            columns = next(batches)
            waited += time.perf_counter() - before
            assert (columns["step"] == step).all(), f"data of step {columns['step']} came at step {step}"
            losses = self.objective(columns, stage, epoch)
            weighted = (losses * losses.new_tensor(columns["weight"])).sum()
            # DeepSpeed and PlainEngine average over micro batches and ranks; padding slots must not count.
            self.engine.accumulate(weighted * (accumulation * self.rank.count / real_samples))
            loss_sum += float(weighted.detach())
            sample_ids += columns["sample_id"].tolist()
        gradient_norm = self.engine.finish_step()
        (loss_sum,) = self.rank.sum(loss_sum)
        loss = loss_sum / real_samples
        if not np.isfinite(loss) or not np.isfinite(gradient_norm):
            raise TrainingDivergedError(
                f"loss {loss} and gradient norm {gradient_norm} at step {step} are not finite",
                value=sample_ids[:32],
                fix=f"lower the learning rate of stage {stage.name}, or look at these samples",
            )
        seconds = time.perf_counter() - started
        return {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "images_per_second": real_samples / seconds,
            "data_wait_share": waited / seconds,
            "step_seconds": seconds,
        }

    def _resume(self) -> int:
        checkpoints = self.store.child("checkpoints")
        steps = checkpoint.committed_steps(checkpoints)
        if not steps:
            self.history.restart_at(0)
            return 0
        state, tensors = checkpoint.load(checkpoints, steps[-1])
        checkpoint.verify_owner(state, self.fingerprint, self.base_sha256)
        self.engine.load_state(tensors, optimizer_steps=state.step)
        self.history.restart_at(state.step)
        if self.rank.is_first:
            log.info("resumed at step %d of %d", state.step, self.config.total_steps)
        return state.step

    def _save(self, step: int) -> None:
        checkpoints = self.store.child("checkpoints")
        state = checkpoint.CheckpointState(step=step, fingerprint=self.fingerprint, base_sha256=self.base_sha256)
        self.history.save()  # before COMMIT: a checkpoint's metrics are never younger than it
        checkpoint.save(checkpoints, state, self.engine.state(), write=self.rank.is_first)
        if self.rank.is_first:
            checkpoint.prune(checkpoints, self.config.checkpoint.keep)
