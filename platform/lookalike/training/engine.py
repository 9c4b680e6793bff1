"""What the loop asks of an engine, and the plain one: a single process without DeepSpeed."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from lookalike.training.config import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state by torch's names; stored beside "master" in a checkpoint


class Engine(Protocol):
    """Runs one model over one or many ranks. Every method is called on every rank."""

    model: nn.Module
    """Call it for a forward pass."""

    def accumulate(self, loss: Tensor) -> None:
        """Backward of one micro batch's loss (a scalar, the mean over the micro batch's samples)."""

    def finish_step(self) -> float:
        """Optimizer step after all micro batches; returns the gradient norm before clipping."""

    def set_learning_rate(self, value: float) -> None:
        """For all parameter groups."""

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Full fp32 tensors on the CPU: ``master/NAME``, ``exp_avg/NAME``, ``exp_avg_sq/NAME``, in a fixed order.

        They are copies, which later steps do not change. On ranks other than 0 they may be empty.
        """

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        """Take up what :meth:`state` gave, at any number of ranks. Strict: every key, no other."""


def build_optimizer(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW at learning rate 0; the loop sets the rate before each step."""
    return torch.optim.AdamW(
        parameters, lr=0.0, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay
    )


def state_keys(names: list[str]) -> list[str]:
    """Keys of a checkpoint's tensors for trainable parameters ``names``, in the order they are written."""
    return [f"{kind}/{name}" for name in names for kind in ("master", *MOMENTS)]


def check_keys(expected: list[str], found: Mapping[str, Tensor]) -> None:
    """Raise KeyError that names the first missing or extra tensor."""
    if missing := sorted(set(expected) - set(found)):
        raise KeyError(f"the checkpoint lacks {len(missing)} tensors, the first is {missing[0]}")
    if extra := sorted(set(found) - set(expected)):
        raise KeyError(f"the checkpoint holds {len(extra)} tensors of another model, the first is {extra[0]}")


class PlainEngine:
    """One process: PyTorch's own optimizer and clipping, the reference that ZeRO-3 is compared with."""

    def __init__(
        self, model: nn.Module, trainable: dict[str, nn.Parameter], config: OptimizerConfig, accumulation: int
    ) -> None:
        self.model = model
        self._named = trainable
        self._max_grad_norm = config.max_grad_norm
        self._accumulation = accumulation
        self._optimizer = build_optimizer(list(trainable.values()), config)

    def accumulate(self, loss: Tensor) -> None:
        (loss / self._accumulation).backward()

    def finish_step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def set_learning_rate(self, value: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = value

    def state(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._named.items():
            state = self._optimizer.state.get(parameter, {})
            yield f"master/{name}", _copy(parameter)
            for moment in MOMENTS:
                yield f"{moment}/{name}", _copy(state.get(moment, torch.zeros_like(parameter)))

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        check_keys(state_keys(list(self._named)), tensors)
        for name, parameter in self._named.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"master/{name}"])
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(optimizer_steps)),
                **{moment: tensors[f"{moment}/{name}"].to(parameter.device).clone() for moment in MOMENTS},
            }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
