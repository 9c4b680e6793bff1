"""What the loop asks of an engine, and the plain one: a single process without DeepSpeed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lookalike.training.average import AVERAGE, EmaConfig, update_average
from lookalike.training.optimizer import STATE_NAMES, OptimizerConfig, build_optimizer, initial_state
from lookalike.training.workers import Precision

MASTER = "master"


class Engine(Protocol):
    """Runs one model over one or many ranks. Every method is called on every rank."""

    model: nn.Module
    """Call it for a forward pass."""

    def accumulate(self, loss: Tensor) -> None:
        """Backward of one micro batch's loss (a scalar, the mean over the micro batch's samples)."""

    def finish_step(self) -> float:
        """Optimizer step after all micro batches, then the average; returns the gradient norm before clipping."""

    def set_learning_rate(self, value: float) -> None:
        """For all parameter groups."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model computes with the averaged weights; where no average is kept, with those it has."""

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Full fp32 tensors on the CPU, in a fixed order: ``master/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME`` and,
        where an average is kept, ``ema/NAME``.

        They are copies, which later steps do not change. On ranks other than 0 they may be empty.
        """

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        """Take up what :meth:`state` gave, at any number of ranks. Strict: every key, no other."""


def kept_by_optimizer(ema: EmaConfig) -> tuple[str, ...]:
    """Names of the tensors in the optimizer's state of a parameter: the optimizer's own, and the moving average."""
    return STATE_NAMES if ema.decay is None else (*STATE_NAMES, AVERAGE)


def fresh_state(weights: Tensor, kept: tuple[str, ...], steps: int = 0, *, fused: bool = False) -> dict[str, Tensor]:
    """The optimizer's state of a parameter after ``steps`` steps, all zero, and the average at ``weights`` if kept."""
    average = {AVERAGE: weights.detach().clone()} if AVERAGE in kept else {}
    return {**initial_state(weights, steps, fused=fused), **average}


def state_keys(names: list[str], kept: tuple[str, ...]) -> list[str]:
    """Keys of a checkpoint's tensors for trainable parameters ``names``, in the order they are written."""
    return [f"{kind}/{name}" for name in names for kind in (MASTER, *kept)]


def check_keys(expected: list[str], found: Mapping[str, Tensor]) -> None:
    """Raise KeyError that names the first missing or extra tensor."""
    if missing := sorted(set(expected) - set(found)):
        raise KeyError(f"the checkpoint lacks {len(missing)} tensors, the first is {missing[0]}")
    if extra := sorted(set(found) - set(expected)):
        raise KeyError(f"the checkpoint holds {len(extra)} tensors of another model, the first is {extra[0]}")


class _Autocast(nn.Module):
    """A model whose passes are in half precision while its weights stay as they are."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(next(self.model.parameters()).device.type, self.dtype):
            return self.model(*args, **kwargs)  # type: ignore[no-any-return]


class PlainEngine:
    """One process: PyTorch's own optimizer and clipping, the reference that ZeRO-3 is compared with."""

    def __init__(
        self,
        model: nn.Module,
        trainable: dict[str, nn.Parameter],
        optimizer: OptimizerConfig,
        accumulation: int,
        ema: EmaConfig | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.model = model if precision == "float32" else _Autocast(model, getattr(torch, precision))
        self._named = trainable
        self._max_grad_norm = optimizer.max_grad_norm
        self._accumulation = accumulation
        self._ema = ema or EmaConfig()
        self._kept = kept_by_optimizer(self._ema)
        self._fused = next(iter(trainable.values())).is_cuda
        self._optimizer = build_optimizer(list(trainable.values()), optimizer, fused=self._fused)
        self._steps = 0
        for parameter in trainable.values():
            self._optimizer.state[parameter] = fresh_state(parameter, self._kept, fused=self._fused)

    def accumulate(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()

    def finish_step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        update_average(self._optimizer, self._ema, self._steps)
        return float(norm)

    def set_learning_rate(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self._ema.decay is None:
            yield
            return
        trained = [parameter.detach().clone() for parameter in self._named.values()]
        try:
            self._compute_with(self._optimizer.state[parameter][AVERAGE] for parameter in self._named.values())
            yield
        finally:
            self._compute_with(trained)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._named.items():
            yield f"{MASTER}/{name}", _copy(parameter)
            for key in self._kept:
                yield f"{key}/{name}", _copy(self._optimizer.state[parameter][key])

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        check_keys(state_keys(list(self._named), self._kept), tensors)
        self._steps = optimizer_steps
        self._compute_with(tensors[f"{MASTER}/{name}"] for name in self._named)
        for name, parameter in self._named.items():
            saved = {key: tensors[f"{key}/{name}"].to(parameter.device, copy=True) for key in self._kept}
            self._optimizer.state[parameter] = (
                fresh_state(parameter, self._kept, optimizer_steps, fused=self._fused) | saved
            )

    @torch.no_grad()
    def _compute_with(self, weights: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._named.values(), weights, strict=True):
            parameter.copy_(value)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
