"""The training loop, the same for ZeRO-3 ranks and for one plain process."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookalike.errors import LookalikeError, StoppedError
from lookalike.storage import Store
from lookalike.storage.lease import Fence
from lookalike.training import checkpoint
from lookalike.training.clock import StepClock
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig, ends_phase, learning_rate, phase_at
from lookalike.training.engine import Engine
from lookalike.training.epoch_plan import EpochPlan
from lookalike.training.history import METRICS, History
from lookalike.training.ledger import Ledger, ledger_key, remove_ledger_after
from lookalike.training.micro_batch import MicroBatch, SampleColumns
from lookalike.training.quarantine import QUARANTINE, Failure, Quarantine, failures
from lookalike.training.ranks import Rank
from lookalike.training.saver import Saver
from lookalike.training.stopping import StopNotice
from lookalike.training.watchdog import Watchdog

log = logging.getLogger(__name__)

_PARTS = ("data_wait", "forward", "backward", "optimizer", "validation", "checkpoint")

Objective = Callable[[MicroBatch, PhaseConfig, int], Tensor]
"""(micro batch, phase, epoch) → loss of each sample, float32 ``[B]``."""
Validation = Callable[[PhaseConfig], dict[str, float]]
"""Held-out metrics for a phase; a collective: every rank calls it."""
Images = Callable[[PhaseConfig, int], None]
"""Generates held-out images after that many steps and keeps them; a collective, too."""
CountWork = Callable[[SampleColumns, PhaseConfig], tuple[int, float]]
"""Tokens and FLOPs of this rank's samples; 0 FLOPs if the device's peak is not known."""


class TrainingDivergedError(LookalikeError):
    """The loss or its gradient is not finite, or the loss is above ``safety.max_loss``."""


@dataclass(frozen=True)
class Loop:
    """Trains as one rank, or as one process; :meth:`run` runs the steps."""

    config: TrainConfig
    rank: Rank
    engine: Engine
    objective: Objective
    validation: Validation
    plan: EpochPlan
    store: Store
    history: History
    ledger: Ledger
    fingerprint: str
    base_sha256: str
    workload: CountWork | None = None
    learning_rate: Callable[[PhaseConfig, int], float] = learning_rate
    """Of a step by its 0-based position in its phase."""
    objective_metrics: Callable[[], Mapping[str, float]] = dict
    """Further metrics of the objective's last call, recorded with the step's."""
    peak_tflops: float | None = None
    """Peak of one rank's device; None if unknown."""
    images: Images | None = None
    clock: StepClock = field(default_factory=StepClock)
    fence: Fence | None = None
    """The run's lease; None if no other process can train this run."""

    @cached_property
    def quarantine(self) -> Quarantine:
        """The samples that this run leaves out."""
        return Quarantine(self.store, self.rank, self.config.safety.quarantine_limit(self.plan.num_samples))

    def run(self, batches: Iterator[MicroBatch]) -> None:
        """Train from the last complete checkpoint to the end of the curriculum.

        Raises, on every rank after the same step:
            StoppedError: a stop was asked for; the state is in a checkpoint.
            TrainingDivergedError: the run's ``diverged/`` has the ids of the batch's samples.
            UnusableDataError: a shard cannot be read, or too many samples cannot be prepared.

        Raises, on the first rank:
            BusyError: another process has taken the run over.
        """
        config = self.config
        accumulation = config.accumulation(self.rank.count)
        with (
            torch.enable_grad(),
            Watchdog(self.store, self.rank.index, config.safety.step_timeout_s) as watchdog,
            StopNotice(self.store, poll=self.rank.is_first) as stop_notice,
            Saver(self.store, config.checkpoint, write=self.rank.is_first, fence=self.fence) as saver,
        ):
            step = self._resume()
            while step < config.total_steps:
                watchdog.alive(step)
                saver.check()
                index, phase, position = phase_at(config.stages, step)
                rate = self.learning_rate(phase, position)
                self.engine.set_learning_rate(rate)
                metrics, stop = self._step(batches, phase, step, accumulation, stop_notice())
                metrics.update(stage=phase.name, stage_index=index, learning_rate=rate)
                self.history.add(step, metrics)
                last_of_phase = ends_phase(config.stages, step)
                step += 1
                if config.validation.samples and (last_of_phase or step % config.validation.every == 0):
                    with self.clock.measure("validation"), torch.no_grad(), self.engine.averaged():
                        held_out = self.validation(phase)
                    self.history.add_validation(step - 1, phase.name, held_out)
                if self.images and (last_of_phase or step % config.images.every == 0):
                    with self.clock.measure("validation"), torch.no_grad(), self.engine.averaged():
                        self.images(phase, step)
                last = stop or step == config.total_steps
                if last or step % config.log_every == 0:
                    self.history.flush(step)
                if last or step % config.checkpoint.every == 0:
                    with self.clock.measure("checkpoint"):
                        self._save(saver, step)
                if stop and step < config.total_steps:
                    raise StoppedError(
                        f"stopped after step {step} of {config.total_steps}, with a checkpoint",
                        fix="the same command resumes from there",
                    )

    def _step(
        self, batches: Iterator[MicroBatch], phase: PhaseConfig, step: int, accumulation: int, asked_to_stop: bool
    ) -> tuple[dict[str, Any], bool]:
        """Run one optimizer step; return its metrics, and whether any rank was asked to stop.

        Seconds of validation and checkpoints are those since the previous step.
        """
        started, tokens, flops = time.perf_counter(), 0, 0.0
        parts: list[Tensor] = []
        measure = self.clock.measure
        epoch = self.plan.epoch_of(step)
        with measure("data_wait"):
            micro_batch = next(batches)
        # Before the first backward pass: a sample's weight depends on the number of real samples of all ranks.
        failed, stop = self.rank.sum(float(_failed_in_step(micro_batch.columns)), float(asked_to_stop))
        real_samples = max(1, int((self.plan.slots(step) >= 0).sum()) - int(failed))
        sample_ids: list[str] = []
        failed_here: list[Failure] = []
        for index in range(accumulation):
            if index:
                with measure("data_wait"):
                    micro_batch = next(batches)
            columns = micro_batch.columns
            assert (columns["step"] == step).all(), f"data of step {columns['step']} came at step {step}"
            slot = (self.rank.index * accumulation + index) * len(columns["weight"])
            failed_here += failures(columns, slot)
            if self.workload is not None:
                work = self.workload(columns, phase)
                tokens, flops = tokens + work[0], flops + work[1]
            with measure("forward"):
                losses = self.objective(micro_batch, phase, epoch)
                weighted = (losses * torch.tensor(columns["weight"]).to(losses.device, non_blocking=True)).sum()
            with measure("backward"):
                # DeepSpeed and PlainEngine average over micro batches and ranks; padding and failed slots do not count.
                self.engine.accumulate(weighted * (accumulation * self.rank.count / real_samples))
            parts.append(weighted.detach())
            learned = columns["sample_id"][columns["weight"] > 0].tolist()
            log.debug("step %d learns from %s", step, json.dumps(learned))
            sample_ids += learned
        self.quarantine.add(step, failed_here, int(failed))
        with measure("optimizer"):
            gradient_norm = self.engine.finish_step()
        self.ledger.add(step, epoch, sample_ids, failed_here)
        loss_sum = float(torch.stack(parts).double().sum())  # after all is queued: reading it waits for the GPU
        loss_sum, tokens_sum, flops_sum = self.rank.sum(loss_sum, tokens, flops)
        loss = loss_sum / real_samples
        if not np.isfinite(gradient_norm) or not abs(loss) <= self.config.safety.max_loss:
            self._give_up(phase, step, loss, gradient_norm)
        seconds = time.perf_counter() - started
        spent = dict(zip(_PARTS, self.clock.take(*_PARTS), strict=True))
        metrics: dict[str, Any] = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            **self.objective_metrics(),
            "images_per_second": real_samples / seconds,
            "data_wait_share": spent["data_wait"] / seconds,
            "step_seconds": seconds,
            **{f"{part}_seconds": taken for part, taken in spent.items()},
            "peak_memory_gb": self.clock.peak_memory_gb(),
            **({"quarantined": int(failed)} if failed else {}),
        }
        if self.workload is not None:
            metrics["tokens_per_second"] = tokens_sum / seconds
        if self.peak_tflops is not None:
            peak = self.peak_tflops * 1e12 * self.rank.count
            metrics["model_flops_utilisation"] = flops_sum / (seconds * peak)
        return metrics, stop > 0

    def _give_up(self, phase: PhaseConfig, step: int, loss: float, gradient_norm: float) -> None:
        """Record the samples of the step that diverged, then raise; every rank has the same metrics."""
        key = f"diverged/step-{step:08d}.json"
        lines = self.ledger.take().decode().splitlines()
        if self.rank.is_first:
            found = {"stage": phase.name, "loss": loss, "gradient_norm": gradient_norm, **json.loads(lines[-1])}
            self.store.write(key, json.dumps(found).encode())
        raise TrainingDivergedError(
            f"training diverged at step {step}: loss {loss:.4g}, gradient norm {gradient_norm:.4g}",
            value=self.store.uri_of(key),
            fix=f"look at the samples named there, or start a run with a lower learning rate in phase {phase.name}",
        )

    def _resume(self) -> int:
        started = time.perf_counter()
        step = checkpoint.newest(self.store)
        if step:
            state, tensors = checkpoint.load(self.store.child(checkpoint.CHECKPOINTS), step)
            checkpoint.verify_owner(state, self.fingerprint, self.base_sha256)
            self.engine.load_state(tensors, optimizer_steps=step)
        self.history.restart_at(step)
        self.quarantine.restart_at(step)
        if self.rank.is_first:
            remove_ledger_after(self.store, step)
            ranks = "1 rank" if self.rank.count == 1 else f"{self.rank.count} ranks"
            taken = time.perf_counter() - started
            log.info("begins at step %d of %d on %s, found in %.1f s", step, self.config.total_steps, ranks, taken)
        return step

    def _save(self, saver: Saver, step: int) -> None:
        lease = self.fence.number if self.fence else 1
        state = checkpoint.CheckpointState(step=step, fingerprint=self.fingerprint, base_sha256=self.base_sha256)
        beside = {METRICS: self.history.encoded(), ledger_key(step, lease): self.ledger.take()}
        if left_out := self.quarantine.encoded():
            beside[QUARANTINE] = left_out
        saver.save(state, self.engine.state(), beside)


def _failed_in_step(columns: SampleColumns) -> int:
    """Return how many samples of this rank's share of the step could not be prepared."""
    return int(columns["failed_in_step"][0]) if "failed_in_step" in columns else 0
