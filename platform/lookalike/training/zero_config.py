"""DeepSpeed's configuration for ZeRO-3, made from ours and checked with DeepSpeed's own schema. Light at import."""

from collections.abc import Mapping
from typing import Any

from lookalike.errors import ConfigError
from lookalike.training.config import TrainConfig


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
    """Check ``settings`` as DeepSpeed does on every rank.

    Raises:
        ConfigError: with DeepSpeed's message.
    """
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    try:
        DeepSpeedConfig(dict(settings))
    except (ValueError, AssertionError, DeepSpeedConfigError) as error:
        raise ConfigError(
            f"DeepSpeed rejects the configuration made from zero and the batch sizes: {error}",
            fix="change zero or batch_size",
        ) from error
