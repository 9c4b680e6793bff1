"""Train several runs at once, each its own adapter, with one forward and backward pass of their base.

Each run keeps its loop, engine, order of samples, noise, clipping, schedule and checkpoints: only the passes are
shared. So a run learns what it learns alone, whatever runs are beside it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.diffusion.flow import Draw, FlowConfig, draw
from lookalike.diffusion.objective import denoising_loss, with_latents
from lookalike.models.batch import to_batch
from lookalike.models.stacked_lora import Adapter, AdapterStack
from lookalike.models.vae import LatentCache
from lookalike.training.engine import PlainEngine
from lookalike.training.loop import Backward, Forward, Loop, Requests
from lookalike.training.loop_config import DropoutConfig
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.objective import sees_references

log = logging.getLogger(__name__)


@dataclass
class _Run:
    """A run among others, between two of its requests."""

    name: str
    loop: Loop
    adapter: Adapter
    requests: Requests
    due: Forward | None = None
    """The forward pass that it waits for."""


@dataclass(frozen=True)
class Ended:
    """A run that is done, or that failed alone."""

    name: str
    error: Exception | None
    """What its loop raised; None if it has trained to its end."""


class SharedPasses:
    """Answers the requests of several loops at once; runs join and leave between two passes."""

    def __init__(
        self, stack: AdapterStack, vae: nn.Module, flow: FlowConfig, device: torch.device | str, max_rows: int = 32
    ) -> None:
        """The model of ``stack`` and ``vae`` are on ``device``, with frozen weights.

        A pass has ``max_rows`` samples at most, but for a micro batch that has more by itself.
        """
        self._max_rows = max_rows
        self._stack, self._vae, self._flow, self._device = stack, vae, flow, torch.device(device)
        self._cache = LatentCache()
        self._runs: dict[str, _Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def join(self, name: str, loop: Loop, adapter: Adapter, batches: Iterator[MicroBatch]) -> Ended | None:
        """Let a run take part from the next pass on; its engine trains ``adapter.parameters``.

        Returns how it ended if it has no step left, or cannot begin.
        """
        assert name not in self._runs, f"{name} is running"
        assert isinstance(loop.engine, PlainEngine), "passes are shared in one process"
        run = _Run(name, loop, adapter, loop.requests(batches))
        self._runs[name] = run
        return self._advance(run)

    def leave(self, name: str) -> None:
        """Take a run out between two of its passes; it resumes from its last checkpoint."""
        run = self._runs.pop(name)
        run.requests.close()
        for parameter in run.adapter.parameters.values():
            parameter.grad = None

    def step(self) -> list[Ended]:
        """Run one forward and backward pass for the next micro batch of every run; return the runs that ended by it.

        Runs whose passes cannot be one (with and without reference tokens, images of different sizes, more than
        ``max_rows`` samples) share a step, and not a pass. An error in a pass ends all runs in it.
        """
        ended: list[Ended] = []
        waiting = [(run, run.due) for run in self._runs.values() if run.due is not None]
        kind = lambda item: _kind(item[1])  # noqa: E731
        for _, group in groupby(sorted(waiting, key=kind), key=kind):
            for runs in self._passes(list(group)):
                ended += self._pass(runs)
        return ended

    def _passes(self, runs: Sequence[tuple[_Run, Forward]]) -> Iterator[list[tuple[_Run, Forward]]]:
        """Divide runs into passes of ``max_rows`` samples; equal sizes lie side by side, since they stack best."""
        chosen: list[tuple[_Run, Forward]] = []
        for run, due in sorted(runs, key=lambda item: _size(item[1])):
            if chosen and sum(_size(each) for _, each in chosen) + _size(due) > self._max_rows:
                yield chosen
                chosen = []
            chosen.append((run, due))
        yield chosen

    def _pass(self, runs: Sequence[tuple[_Run, Forward]]) -> list[Ended]:
        ended: list[Ended] = []
        try:
            learned = self._passed(runs, ended)
        except Exception as error:  # such as memory: not of one run
            for run, _ in runs:
                if self._runs.get(run.name) is run:
                    self.leave(run.name)
                    ended.append(Ended(run.name, error))
            return ended
        for run in learned:
            if (end := self._advance(run)) is not None:
                ended.append(end)
        return ended

    def _passed(self, runs: Sequence[tuple[_Run, Forward]], ended: list[Ended]) -> list[_Run]:
        """Run the forward and backward pass of runs; return those that have their gradients."""
        shares: list[tuple[_Run, Tensor]] = []
        with torch.enable_grad(), self._stack.route([(run.adapter, _size(due)) for run, due in runs]):
            losses = self._losses(runs).split([_size(due) for _, due in runs])
            for (run, _), own in zip(runs, losses, strict=True):
                request = self._request(run, own, ended)
                if isinstance(request, Backward):
                    engine = run.loop.engine
                    assert isinstance(engine, PlainEngine)
                    shares.append((run, engine.share_of_step(request.loss)))
            if shares:
                torch.stack([share for _, share in shares]).sum().backward()
        return [run for run, _ in shares]

    def _losses(self, runs: Sequence[tuple[_Run, Forward]]) -> Tensor:
        """Loss of each sample of all runs, float32 ``[B]``."""
        columns = _joined([due.micro_batch.columns for _, due in runs])
        uses_references = sees_references(runs[0][1].phase)
        batch = with_latents(to_batch(columns), self._vae, self._cache, references=uses_references).to(self._device)
        assert batch.target_latents is not None
        tokens, channels = batch.target_latents.shape[1:]
        drawn = [
            draw(
                due.micro_batch.columns["sample_id"].tolist(),
                (run.loop.config.seed, due.epoch),
                (tokens, channels),
                self._flow,
            )
            for run, due in runs
        ]
        dropout = [(run.loop.config.dropout, _size(due)) for run, due in runs]
        return denoising_loss(
            self._stack.model,
            self._vae,
            batch,
            sample_ids=columns["sample_id"].tolist(),
            seed=None,
            flow=self._flow,
            cache=self._cache,
            drawn=Draw(*(torch.cat([getattr(each, name) for each in drawn]) for name in ("noise", "sigma", "uniform"))),
            use_mllm=True,
            use_references=uses_references,
            dropout_mllm=_per_sample(dropout, "mllm", self._device),
            dropout_references=_per_sample(dropout, "references", self._device),
        )

    def _request(self, run: _Run, answer: Tensor | None, ended: list[Ended]) -> Forward | Backward | None:
        """The next request of a run; None if it ended, which is added to ``ended``."""
        try:
            return run.requests.send(answer)
        except StopIteration:
            ended.append(Ended(run.name, None))
        except Exception as error:  # of this run alone; the others go on
            log.warning("the run %s ended: %s", run.name, error)
            ended.append(Ended(run.name, error))
        del self._runs[run.name]
        return None

    def _advance(self, run: _Run) -> Ended | None:
        """Go on to the run's next forward pass; return how it ended if it has none."""
        ended: list[Ended] = []
        request = self._request(run, None, ended)
        run.due = request if isinstance(request, Forward) else None
        return ended[0] if ended else None


def _size(due: Forward) -> int:
    return len(due.micro_batch.columns["sample_id"])


def _kind(due: Forward) -> tuple[Any, ...]:
    """What must be equal for two micro batches to share a pass; its order is that of the passes."""
    columns = due.micro_batch.columns
    shapes = {name: columns[name].shape[1:] for name in sorted(columns) if columns[name].dtype != object}
    return (sees_references(due.phase), repr(shapes))


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _per_sample(dropout: Sequence[tuple[DropoutConfig, int]], name: str, device: torch.device) -> Tensor:
    values = [value for each, count in dropout for value in [getattr(each, name)] * count]
    return torch.tensor(values, device=device)
