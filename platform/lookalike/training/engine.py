"""What the loop asks of an engine, and the plain one: a single process without DeepSpeed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lookalike.training.config import EmaConfig, OptimizerConfig, Precision

MASTER, AVERAGE = "master", "ema"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state by torch's names


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


def build_optimizer(
    parameters: list[nn.Parameter], config: OptimizerConfig, *, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW at learning rate 0; the loop sets the rate before each step; ``fused`` is one kernel for all."""
    return torch.optim.AdamW(
        parameters, lr=0.0, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay, fused=fused
    )


def kept_by_optimizer(ema: EmaConfig) -> tuple[str, ...]:
    """Keys of an optimizer's state: AdamW's moments, and the average, which lives there as one more.

    So it is sharded, offloaded and addressed by name as the moments are.
    """
    return MOMENTS if ema.decay is None else (*MOMENTS, AVERAGE)


def fresh_state(weights: Tensor, kept: tuple[str, ...], steps: int = 0, *, fused: bool = False) -> dict[str, Tensor]:
    """AdamW's state after ``steps`` steps, as torch would make it in its first one, and the average at ``weights``."""
    moments = {key: weights.detach().clone() if key == AVERAGE else torch.zeros_like(weights) for key in kept}
    return {"step": _step(weights, steps, fused=fused), **moments}


def _step(weights: Tensor, steps: int, *, fused: bool) -> Tensor:
    """AdamW counts on the host, and where ``fused`` beside the weights."""
    return torch.tensor(float(steps), device=weights.device if fused else None)


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
        # Bfloat16 was trained on an H200 without cuDNN's attention; with it was not tried again after a backward pass
        # had failed, for which a matrix product with one column may be to blame, too.
        torch.backends.cuda.enable_cudnn_sdp(False)

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
            self._optimizer.state[parameter] = {
                "step": _step(parameter, optimizer_steps, fused=self._fused),
                **{key: tensors[f"{key}/{name}"].to(parameter.device, copy=True) for key in self._kept},
            }

    @torch.no_grad()
    def _compute_with(self, weights: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._named.values(), weights, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, ema: EmaConfig, steps: int) -> None:
    """Move the average of whatever ``optimizer`` steps (under ZeRO-3 this rank's partitions) towards its weights."""
    if ema.decay is not None and optimizer.state:
        averages = [state[AVERAGE] for state in optimizer.state.values()]
        torch._foreach_lerp_(averages, list(optimizer.state), 1 - ema.decay_after(steps))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
