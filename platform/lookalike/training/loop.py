"""The training loop, the same for ZeRO-3 ranks, for one plain process, and for one of several runs that share passes.

The loop does not call the model. It asks for the forward and backward pass of each micro batch (:class:`Forward`,
:class:`Backward`), so that its driver may answer the requests of several loops in one pass.
"""

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from lookalike.errors import LookalikeError, StoppedError
from lookalike.storage import Store
from lookalike.storage.lease import Fence
from lookalike.training import checkpoint
from lookalike.training.clock import StepClock
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig, learning_rate, phase_at
from lookalike.training.engine import Engine
from lookalike.training.epoch_plan import EpochPlan
from lookalike.training.history import METRICS, History
from lookalike.training.ledger import Ledger, ledger_key, remove_ledger_after
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.quarantine import QUARANTINE, Failure, Quarantine, failures
from lookalike.training.ranks import Rank
from lookalike.training.saver import Saver
from lookalike.training.stopping import stop_notice
from lookalike.training.watchdog import Watchdog

if TYPE_CHECKING:  # it imports the model's classes, for which jobs need not wait
    from lookalike.training.workload import Workload

log = logging.getLogger(__name__)

_PARTS = ("data_wait", "forward", "backward", "optimizer", "validation", "checkpoint")

Objective = Callable[[MicroBatch, PhaseConfig, int], Tensor]
"""(micro batch, phase, epoch) → loss of each sample, float32 ``[B]``."""
Evaluation = Callable[[PhaseConfig, int], None]
"""(phase, steps done): validates, or generates held-out images; a collective: every rank calls it."""


class TrainingDivergedError(LookalikeError):
    """The loss or its gradient is not finite, or the loss is above ``safety.max_loss``."""


@dataclass(frozen=True)
class Forward:
    """A loop asks for the loss of each sample of a micro batch, float32 ``[B]``."""

    micro_batch: MicroBatch
    phase: PhaseConfig
    epoch: int


@dataclass(frozen=True)
class Backward:
    """A loop asks for the backward pass of a micro batch's loss, a scalar; it is answered with None."""

    loss: Tensor


Requests = Generator[Forward | Backward, Tensor | None, None]
"""The requests of a loop; each is answered by ``send``."""


@dataclass
class _Share:
    """This rank's share of an optimizer step, and what it has computed of it."""

    step: int
    phase: PhaseConfig
    real_samples: int
    """Of all ranks."""
    losses: list[Tensor] = field(default_factory=list)
    sample_ids: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    tokens: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class Loop:
    """Trains as one rank, or as one process; :meth:`run` runs the steps."""

    config: TrainConfig
    rank: Rank
    engine: Engine
    objective: Objective
    plan: EpochPlan
    store: Store
    history: History
    fingerprint: str
    base_sha256: str
    evaluations: Sequence[tuple[int, Evaluation]] = ()
    """Each with the steps between two of them; the last step of a phase runs all."""
    workload: "Workload | None" = None
    learning_rate: Callable[[PhaseConfig, int], float] = learning_rate
    """Of a step by its 0-based position in its phase."""
    objective_metrics: Callable[[], Mapping[str, float]] = dict
    """Further metrics of the objective's last call, recorded with the step's."""
    clock: StepClock = field(default_factory=StepClock)
    fence: Fence | None = None
    """The run's lease; None if no other process can train this run."""

    @cached_property
    def ledger(self) -> Ledger:
        """This rank's part of the ledger."""
        return Ledger(self.rank)

    @cached_property
    def quarantine(self) -> Quarantine:
        """The samples that this run leaves out."""
        return Quarantine(self.store, self.rank, self.config.safety.quarantine_limit(self.plan.num_samples))

    def run(self, batches: Iterator[MicroBatch]) -> None:
        """Train from the last complete checkpoint to the end of the curriculum.

        Raises on every rank after the same step, except for BusyError (on the first rank):
            StoppedError: a stop was asked for; the state is in a checkpoint.
            TrainingDivergedError: the run's ``diverged/`` has the ids of the batch's samples.
            UnusableDataError: a shard cannot be read, or too many samples cannot be prepared.
            BusyError: another process has taken the run over.
        """
        requests, answer = self.requests(batches), None
        with torch.enable_grad():
            while True:
                try:
                    request = requests.send(answer)
                except StopIteration:
                    return
                try:
                    answer = self._answer(request)
                except BaseException as error:
                    requests.throw(error)  # it ends what it has opened, and raises the error again
                    raise

    def _answer(self, request: Forward | Backward) -> Tensor | None:
        if isinstance(request, Forward):
            return self.objective(request.micro_batch, request.phase, request.epoch)
        self.engine.accumulate(request.loss)
        return None

    def requests(self, batches: Iterator[MicroBatch]) -> Requests:
        """Train as :meth:`run`, which answers the requests by itself.

        The gradients of a step are in the engine's parameters when its last :class:`Backward` is answered.
        """
        config, total = self.config, self.config.total_steps
        with (
            Watchdog(self.store, self.rank.index, config.safety.step_timeout_s) as watchdog,
            stop_notice(self.store, poll=self.rank.is_first) as asked_to_stop,
            Saver(self.store, config.checkpoint, write=self.rank.is_first, fence=self.fence) as saver,
        ):
            step = self._resume()
            while step < total:
                watchdog.alive(step)
                saver.check()
                stop = yield from self._step(batches, step, asked_to_stop())
                step += 1
                self._evaluate(step)
                last = stop or step == total
                if last or step % config.log_every == 0:
                    self.history.flush(step)
                if last or step % config.checkpoint.every == 0:
                    with self.clock.measure("checkpoint"):
                        self._save(saver, step)
                if stop and step < total:
                    raise StoppedError(
                        f"stopped after step {step} of {total}, with a checkpoint",
                        fix="the same command resumes from there",
                    )

    def _step(
        self, batches: Iterator[MicroBatch], step: int, asked_to_stop: bool
    ) -> Generator[Forward | Backward, Tensor | None, bool]:
        """Run and record one optimizer step; return whether any rank was asked to stop."""
        started = time.perf_counter()
        phase_index, phase, position = phase_at(self.config.stages, step)
        rate = self.learning_rate(phase, position)
        self.engine.set_learning_rate(rate)
        micro_batches = self._micro_batches(batches, step)
        first = next(micro_batches)
        # Before the first backward pass: a sample's weight depends on the number of real samples of all ranks.
        failed, stop = self.rank.sum(float(first.columns.get("failed_in_step", [0])[0]), float(asked_to_stop))
        real_samples = max(1, int((self.plan.slots(step) >= 0).sum()) - int(failed))
        share = _Share(step, phase, real_samples)
        for micro_batch in chain([first], micro_batches):
            yield from self._learn(micro_batch, share)
        self.quarantine.add(step, share.failed, int(failed))
        with self.clock.measure("optimizer"):
            gradient_norm = self.engine.finish_step()
        self.ledger.add(step, self.plan.epoch_of(step), share.sample_ids, share.failed)
        loss_sum = float(torch.stack(share.losses).double().sum())  # after all is queued: reading it waits for the GPU
        loss_sum, tokens, flops = self.rank.sum(loss_sum, share.tokens, share.flops)
        loss = loss_sum / real_samples
        if not np.isfinite(gradient_norm) or not abs(loss) <= self.config.safety.max_loss:
            self._give_up(phase, step, loss, gradient_norm)
        seconds, spent = time.perf_counter() - started, self.clock.take(*_PARTS)
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
            metrics["tokens_per_second"] = tokens / seconds
            if self.workload.peak_tflops is not None:
                peak = self.workload.peak_tflops * 1e12 * self.rank.count
                metrics["model_flops_utilisation"] = flops / (seconds * peak)
        self.history.add(step, {**metrics, "stage": phase.name, "stage_index": phase_index, "learning_rate": rate})
        return stop > 0

    def _micro_batches(self, batches: Iterator[MicroBatch], step: int) -> Iterator[MicroBatch]:
        for _ in range(self.config.accumulation(self.rank.count)):
            with self.clock.measure("data_wait"):
                micro_batch = next(batches)
            steps = micro_batch.columns["step"]
            assert (steps == step).all(), f"data of step {steps} came at step {step}"
            yield micro_batch

    def _learn(self, micro_batch: MicroBatch, share: _Share) -> Requests:
        """Run forward and backward pass of one micro batch, and add it to ``share``."""
        columns, accumulation = micro_batch.columns, self.config.accumulation(self.rank.count)
        weight, position = columns["weight"], self.rank.index * accumulation + len(share.losses)
        share.failed += failures(columns, position * len(weight))
        if self.workload is not None:
            tokens, flops = self.workload(columns, share.phase)
            share.tokens, share.flops = share.tokens + tokens, share.flops + flops
        with self.clock.measure("forward"):
            losses = yield Forward(micro_batch, share.phase, self.plan.epoch_of(share.step))
            assert losses is not None
            weighted = (losses * torch.tensor(weight).to(losses.device, non_blocking=True)).sum()
        with self.clock.measure("backward"):
            # Engines average over micro batches and ranks; padding and failed slots do not count.
            yield Backward(weighted * (accumulation * self.rank.count / share.real_samples))
        share.losses.append(weighted.detach())
        learned = columns["sample_id"][weight > 0].tolist()
        log.debug("step %d learns from %s", share.step, json.dumps(learned))
        share.sample_ids += learned

    def _evaluate(self, step: int) -> None:
        _, phase, position = phase_at(self.config.stages, step - 1)
        for every, evaluate in self.evaluations:
            if step % every == 0 or position == phase.steps - 1:
                with self.clock.measure("validation"), torch.no_grad(), self.engine.averaged():
                    evaluate(phase, step)

    def _give_up(self, phase: PhaseConfig, step: int, loss: float, gradient_norm: float) -> NoReturn:
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
