"""DeepSpeed ZeRO-3: one module under ``zero.Init``, weights read tensor by tensor, state addressed by name.

DeepSpeed's own checkpoints are pickles tied to a world size. Here full fp32 tensors go in and out by parameter name,
so a run can resume at any number of ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lookalike.errors import ConfigError
from lookalike.training.config import TrainConfig
from lookalike.training.engine import MASTER, Engine
from lookalike.training.optimizer import build_optimizer

_GATHER_ELEMENTS = 50_000_000  # parameters gathered at once while weights are loaded: 200 MB in fp32


def zero3_config(config: TrainConfig, ranks: int) -> dict[str, Any]:
    """Return the configuration for ``deepspeed.initialize`` on ``ranks`` ranks; keys are DeepSpeed's
    (``docs/config-json``)."""
    zero = config.zero
    overlap = config.workers.use_gpu if zero.overlap is None else zero.overlap
    settings: dict[str, Any] = {
        "stage": 3,
        "contiguous_gradients": True,
        "overlap_comm": overlap,
        "reduce_bucket_size": zero.reduce_bucket,
        "stage3_prefetch_bucket_size": zero.prefetch_bucket,
        "stage3_max_live_parameters": zero.max_live,
        "stage3_param_persistence_threshold": zero.keep_whole,
    }
    if zero.offload != "none":
        settings["offload_optimizer"] = {"device": "cpu"}
    if zero.offload == "optimizer+parameters":
        settings["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation(ranks),
        "gradient_clipping": config.optimizer.max_grad_norm,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},  # a bfloat16 sum of many micro batches loses small gradients
        "zero_optimization": settings,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW steps on the host, and needs no operator compiled
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def check_schema(settings: Mapping[str, Any]) -> None:
    """Check ``settings`` as DeepSpeed does on every rank. Raises ConfigError with DeepSpeed's message."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    try:
        DeepSpeedConfig(dict(settings))
    except (ValueError, AssertionError, DeepSpeedConfigError) as error:
        raise ConfigError(
            f"DeepSpeed rejects the configuration made from zero and the batch sizes: {error}",
            fix="change zero or batch_size",
        ) from error


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


class ZeroEngine(Engine):
    """DeepSpeed's engine behind the :class:`~lookalike.training.engine.Engine` interface."""

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
        trainable = select(module)  # ZeRO-3 adds ds_shape and ds_tensor to each parameter
        for parameter in trainable.values():  # DeepSpeed casts what was made under zero.Init, but no adapters
            parameter.data = parameter.data.to(getattr(torch, config.precision))
        optimizer = build_optimizer(list(trainable.values()), config.optimizer, fused=config.zero.offload != "none")
        engine, zero3, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self._engine: Any = engine
        super().__init__(engine, trainable, zero3.optimizer, zero3.fp32_partitioned_groups_flat, config.ema)

    def accumulate(self, loss: Tensor) -> None:
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts micro batches, and steps at the boundary only

    def load_state(self, tensors: Mapping[str, Tensor], optimizer_steps: int) -> None:
        super().load_state(tensors, optimizer_steps)
        self._compute_with(MASTER)  # otherwise one step would compute with stale weights

    def _step(self) -> Any:
        self._engine.step()
        return self._engine.get_global_grad_norm()

    def _full(self, parameter: Any, kind: str) -> Tensor:
        """The tensor is whole on every rank, fp32; a collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        get_state = safe_get_full_optimizer_state
        full: Tensor = safe_get_full_fp32_param(parameter) if kind == MASTER else get_state(parameter, kind)
        return full.view(parameter.ds_shape)

    def _set(self, parameter: Any, kind: str, full: Tensor) -> None:
        """Set this rank's share, zero-padded at the end as in ZeRO-3."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        share = parameter.ds_tensor.numel()
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        flat = torch.zeros(share * ranks, dtype=torch.float32)
        flat[: full.numel()] = full.flatten().float()
        mine = flat[share * rank : share * (rank + 1)].to(parameter.ds_tensor.device)
        if kind == MASTER:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, kind)

    def _compute_with(self, kind: str) -> None:
        """Copy the tensors of a kind to the weights of the forward pass."""
        import deepspeed

        for parameter in self._named.values():
            full = self._full(parameter, kind)
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(full)
