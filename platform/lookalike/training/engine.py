"""The engine that the loop trains with: its protocol, and the plain one for a single process without DeepSpeed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.training.average import AVERAGE, EmaConfig, update_average
from lookalike.training.optimizer import STATE_NAMES, OptimizerConfig, build_optimizer, initial_state
from lookalike.training.workers import Precision

MASTER = "master"


class Engine(Protocol):
    """Runs one model over one or many ranks. Every method is called on every rank."""

    model: nn.Module
    """Call it for a forward pass."""

    def accumulate(self, loss: Tensor) -> None:
        """Run the backward pass of one micro batch's loss (a scalar, the mean over its samples)."""

    def finish_step(self) -> float:
        """Step the optimizer after all micro batches, update the average; return the gradient norm before clipping."""

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of all parameter groups."""

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the model computes with the averaged weights, if an average is kept."""

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield full fp32 tensors on the CPU in a fixed order: for each parameter ``master/NAME``, those of the
        optimizer (:data:`~lookalike.training.optimizer.STATE_NAMES`), and ``ema/NAME`` if an average is kept.

        They are copies, which later steps do not change. On ranks other than 0 they may be empty.
        """

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        """Load the tensors of :meth:`state`, written at any number of ranks.

        Raises:
            InputError: a key is missing or unknown.
        """


def kept_by_optimizer(ema: EmaConfig) -> tuple[str, ...]:
    """Return the names of the tensors in the optimizer's state of a parameter: its own, and the moving average."""
    return STATE_NAMES if ema.decay is None else (*STATE_NAMES, AVERAGE)


def fresh_state(weights: Tensor, kept: tuple[str, ...], steps: int = 0, *, fused: bool = False) -> dict[str, Tensor]:
    """Return a parameter's state in the optimizer after ``steps`` steps: zeros, and ``weights`` as the average."""
    average = {AVERAGE: weights.detach().clone()} if AVERAGE in kept else {}
    return {**initial_state(weights, steps, fused=fused), **average}


def state_keys(names: list[str], kept: tuple[str, ...]) -> list[str]:
    """Return the keys of a checkpoint's tensors for the trainable parameters ``names``, in the order of writing."""
    return [f"{kind}/{name}" for name in names for kind in (MASTER, *kept)]


def check_keys(expected: list[str], found: Mapping[str, Tensor]) -> None:
    """Compare a checkpoint's keys with the expected ones.

    Raises:
        InputError: a tensor is missing, or belongs to another model.
    """
    for names, problem in (
        (set(expected) - set(found), "lacks tensors"),
        (set(found) - set(expected), "has tensors of another model"),
    ):
        if names:
            raise InputError(
                f"the checkpoint {problem}: {len(names)}, the first is {min(names)}",
                fix="resume with the configuration of the run that wrote it, or give another --run to start again",
            )


class _Autocast(nn.Module):
    """A model that computes in half precision while its weights keep their type."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(next(self.model.parameters()).device.type, self.dtype):
            return self.model(*args, **kwargs)  # type: ignore[no-any-return]


class PlainEngine:
    """Trains in one process with PyTorch's own optimizer and clipping: the reference that ZeRO-3 is compared with."""

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
