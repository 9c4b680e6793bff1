"""The engine that the loop trains with, and the plain one for a single process without DeepSpeed."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn, optim

from lookalike.errors import InputError
from lookalike.training.average import AVERAGE, EmaConfig, update_average
from lookalike.training.optimizer import STATE_NAMES, OptimizerConfig, build_optimizer, initial_state
from lookalike.training.workers import Precision

MASTER = "master"


class Engine(ABC):
    """Runs one model over one or many ranks. Every method is called on every rank."""

    def __init__(
        self,
        model: nn.Module,
        trainable: dict[str, nn.Parameter],
        optimizer: optim.Optimizer,
        stepped: Iterable[Tensor],
        ema: EmaConfig,
    ) -> None:
        """``stepped`` are the tensors that ``optimizer`` updates: the parameters, or this rank's partitions of them."""
        self.model = model
        """Call it for a forward pass."""
        self._named: dict[str, Any] = trainable
        self._optimizer, self._stepped, self._ema = optimizer, list(stepped), ema
        self._kinds = (MASTER, *STATE_NAMES) if ema.decay is None else (MASTER, *STATE_NAMES, AVERAGE)
        self._begin_at(0)

    @abstractmethod
    def accumulate(self, loss: Tensor) -> None:
        """Run the backward pass of one micro batch's loss (a scalar, the mean over its samples)."""

    def finish_step(self) -> float:
        """Step the optimizer after all micro batches, update the average; return the gradient norm before clipping."""
        norm = self._step()
        self._steps += 1
        update_average(self._optimizer, self._ema, self._steps)
        return float(norm)

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of all parameter groups."""
        for group in self._optimizer.param_groups:
            group["lr"] = value

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Return a context in which the model computes with the averaged weights, if an average is kept."""
        if self._ema.decay is None:
            yield
            return
        try:
            self._compute_with(AVERAGE)
            yield
        finally:
            self._compute_with(MASTER)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield full fp32 tensors on the CPU in a fixed order: for each parameter ``master/NAME``, those of the
        optimizer (:data:`~lookalike.training.optimizer.STATE_NAMES`), and ``ema/NAME`` if an average is kept.

        They are copies, which later steps do not change.
        """
        for name, parameter in self._named.items():
            for kind in self._kinds:
                yield f"{kind}/{name}", self._full(parameter, kind).to("cpu", torch.float32, copy=True)

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        """Load the tensors of :meth:`state`, written at any number of ranks.

        Raises InputError if one is missing, or belongs to another model.
        """
        expected = {f"{kind}/{name}" for name in self._named for kind in self._kinds}
        for keys, problem in (
            (expected - tensors.keys(), "lacks tensors"),
            (tensors.keys() - expected, "has tensors of another model"),
        ):
            if keys:
                raise InputError(
                    f"the checkpoint {problem}: {len(keys)}, the first is {min(keys)}",
                    fix="resume with the configuration of the run that wrote it, or give another --run to start again",
                )
        self._begin_at(optimizer_steps)
        for name, parameter in self._named.items():
            for kind in self._kinds:
                self._set(parameter, kind, tensors[f"{kind}/{name}"])

    def _begin_at(self, steps: int) -> None:
        """Create the optimizer's state as after ``steps`` steps, so that it can be set before the first step."""
        self._steps = steps
        for weights in self._stepped:
            state = initial_state(weights, steps, fused=self._optimizer.defaults["fused"])
            if AVERAGE in self._kinds:
                state[AVERAGE] = weights.detach().clone()
            self._optimizer.state[weights] = state

    @abstractmethod
    def _step(self) -> Any:
        """Clip the gradients, step the optimizer, and return the norm before clipping."""

    @abstractmethod
    def _full(self, parameter: Any, kind: str) -> Tensor:
        """Return the whole tensor of a kind that belongs to ``parameter``."""

    @abstractmethod
    def _set(self, parameter: Any, kind: str, full: Tensor) -> None:
        """Set that tensor."""

    @abstractmethod
    def _compute_with(self, kind: str) -> None:
        """Compute forward passes with the average, then with the master weights again."""


class _Autocast(nn.Module):
    """A model that computes in half precision while its weights keep their type."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(next(self.model.parameters()).device.type, self.dtype):
            return self.model(*args, **kwargs)  # type: ignore[no-any-return]


class PlainEngine(Engine):
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
        parameters = list(trainable.values())
        self._max_grad_norm = optimizer.max_grad_norm
        self._accumulation = accumulation
        super().__init__(
            model if precision == "float32" else _Autocast(model, getattr(torch, precision)),
            trainable,
            build_optimizer(parameters, optimizer, fused=parameters[0].is_cuda),
            parameters,
            ema or EmaConfig(),
        )

    def accumulate(self, loss: Tensor) -> None:
        self.share_of_step(loss).backward()

    def share_of_step(self, loss: Tensor) -> Tensor:
        """Return what one micro batch's loss adds to its step's: the scalar whose gradient :meth:`accumulate` adds."""
        return loss / self._accumulation

    def _step(self) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _full(self, parameter: Any, kind: str) -> Tensor:
        tensor: Tensor = parameter if kind == MASTER else self._optimizer.state[parameter][kind]
        return tensor.detach()

    def _set(self, parameter: Any, kind: str, full: Tensor) -> None:
        self._full(parameter, kind).copy_(full)

    def _compute_with(self, kind: str) -> None:
        """Exchange the weights and their average: each call undoes the one before."""
        for parameter in self._named.values():
            state = self._optimizer.state[parameter]
            parameter.data, state[AVERAGE] = state[AVERAGE], parameter.data
