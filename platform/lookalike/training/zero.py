"""DeepSpeed ZeRO-3: one module under ``zero.Init``, weights read tensor by tensor, state addressed by name.

DeepSpeed's own checkpoints are pickles tied to a world size. Here full fp32 tensors go in and out by parameter name,
so a run can resume at any number of ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.training.average import AVERAGE, update_average
from lookalike.training.config import TrainConfig
from lookalike.training.engine import MASTER, check_keys, fresh_state, kept_by_optimizer, state_keys
from lookalike.training.optimizer import build_optimizer
from lookalike.training.zero_config import zero3_config

_GATHER_ELEMENTS = 50_000_000  # parameters gathered at once while weights are loaded: 200 MB in fp32


def load_partitioned(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy ``(name, tensor)`` pairs into a module built under ``zero.Init``; rank 0 reads, every rank keeps its share.

    At most ``_GATHER_ELEMENTS`` elements and one tensor are whole in memory at a time. The iterable checks the names
    (:func:`lookalike.models.weights.strict_weights`).
    """
    import deepspeed

    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for group in _bounded(weights, _GATHER_ELEMENTS):
        partitioned = [tensors[name] for name, _ in group if hasattr(tensors[name], "ds_id")]
        with torch.no_grad(), deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0):
            for name, tensor in group:
                if torch.distributed.get_rank() == 0 or not hasattr(tensors[name], "ds_id"):
                    tensors[name].copy_(tensor)


def _bounded(weights: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    group: list[tuple[str, Tensor]] = []
    size = 0
    for item in weights:
        group.append(item)
        size += item[1].numel()
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group


class ZeroEngine:
    """DeepSpeed's engine behind the :class:`~lookalike.training.engine.Engine` protocol."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        weights: Callable[[nn.Module], Iterable[tuple[str, Tensor]]],
        select: Callable[[nn.Module], dict[str, nn.Parameter]],
        config: TrainConfig,
    ) -> None:
        """``build`` makes the module without weights, ``weights`` reads them, ``select`` returns what is trained.

        Of ``config`` the engine uses the optimizer, the average, the precision, the batch and ``zero``.
        """
        import deepspeed

        settings = zero3_config(config, torch.distributed.get_world_size())
        with deepspeed.zero.Init(config_dict_or_path=settings):
            module = build()
        load_partitioned(module, weights(module))
        self._named: dict[str, Any] = dict(select(module))  # ZeRO-3 adds ds_shape and ds_tensor to each
        for parameter in self._named.values():  # DeepSpeed casts what was made under zero.Init, but no adapters
            parameter.data = parameter.data.to(getattr(torch, config.precision))
        optimizer = build_optimizer(list(self._named.values()), config.optimizer, fused=config.zero.offload != "none")
        engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.model: nn.Module = engine
        self._engine: Any = engine
        self._ema = config.ema
        self._kept = kept_by_optimizer(self._ema)
        self._begin_at(0)

    def accumulate(self, loss: Tensor) -> None:
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts micro batches, and steps at the boundary only

    def finish_step(self) -> float:
        self._engine.step()
        self._steps += 1
        update_average(self._engine.optimizer.optimizer, self._ema, self._steps)
        return float(self._engine.get_global_grad_norm())

    def set_learning_rate(self, value: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = value

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self._ema.decay is None:
            yield
            return
        try:
            self._compute_with(AVERAGE)
            yield
        finally:
            self._compute_with(MASTER)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._named.items():
            for key in (MASTER, *self._kept):
                yield f"{key}/{name}", _full(parameter, key).cpu()

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        check_keys(state_keys(list(self._named), self._kept), tensors)
        self._begin_at(optimizer_steps)
        for name, parameter in self._named.items():
            safe_set_local_fp32_param(parameter, _partition_of(tensors[f"{MASTER}/{name}"], parameter))
            for key in self._kept:
                safe_set_local_optimizer_state(parameter, _partition_of(tensors[f"{key}/{name}"], parameter), key)
        self._compute_with(MASTER)  # otherwise one step would compute with stale weights

    def _compute_with(self, key: str) -> None:
        """Copy the tensors under ``key`` to the weights of the forward pass."""
        import deepspeed

        for parameter in self._named.values():
            full = _full(parameter, key)
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(full)

    def _begin_at(self, steps: int) -> None:
        """Create the optimizer's state as after ``steps`` steps, so that it can be set before the first step."""
        self._steps = steps
        zero3 = self._engine.optimizer
        for partition in zero3.fp32_partitioned_groups_flat:
            zero3.optimizer.state[partition] = fresh_state(partition, self._kept, steps)


def _full(parameter: Any, key: str) -> Tensor:
    """Return master weights or state of a partitioned parameter, whole on every rank, fp32; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    get_state = safe_get_full_optimizer_state
    full: Tensor = safe_get_full_fp32_param(parameter) if key == MASTER else get_state(parameter, key)
    return full.view(parameter.ds_shape)


def _partition_of(full: Tensor, parameter: Any) -> Tensor:
    """Return this rank's share of a full tensor, zero-padded at the end as in ZeRO-3."""
    share = parameter.ds_tensor.numel()
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    flat = torch.zeros(share * ranks, dtype=torch.float32)
    flat[: full.numel()] = full.flatten().float()
    return flat[share * rank : share * (rank + 1)].to(parameter.ds_tensor.device)
