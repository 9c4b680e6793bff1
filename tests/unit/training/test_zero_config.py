"""Our configuration of ZeRO-3 as DeepSpeed's own schema reads it, and what is refused before that."""

from typing import Any

import pytest

from lookalike import config as configs
from lookalike.errors import ConfigError
from lookalike.training.config import TrainConfig
from lookalike.training.optimizer import OptimizerConfig
from lookalike.training.workers import WorkerConfig, ZeroConfig
from lookalike.training.zero import check_schema, zero3_config

GPUS = WorkerConfig(num_workers=2, use_gpu=True)


def config_of(**changes: Any) -> TrainConfig:
    values = {"dataset": "none", "run": "none", "batch_size": 16, "micro_batch_size": 4, **changes}
    return TrainConfig(**values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("offload", ["none", "optimizer", "optimizer+parameters"])
def test_deepspeed_reads_the_configuration_as_intended(precision: str, offload: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    sizes: dict[str, Any] = {"reduce_bucket": 11, "prefetch_bucket": 12, "max_live": 13, "keep_whole": 14}
    zero = ZeroConfig(offload=offload, **sizes)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(max_grad_norm=0.5)
    ours = zero3_config(config_of(precision=precision, zero=zero, optimizer=optimizer, workers=GPUS), ranks=2)
    check_schema(ours)
    read = DeepSpeedConfig(ours)
    assert read.zero_optimization_stage == 3
    assert read.bfloat16_config.enabled == (precision == "bfloat16")
    assert read.grad_accum_dtype == "fp32"
    assert (read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (4, 2)
    assert read.gradient_clipping == 0.5
    found = read.zero_config
    assert (found.reduce_bucket_size, found.prefetch_bucket_size) == (11, 12)
    assert (found.max_live_parameters, found.param_persistence_threshold) == (13, 14)
    assert found.overlap_comm
    places = [getattr(place, "device", "none") for place in (found.offload_optimizer, found.offload_param)]
    assert places.count("cpu") == ["none", "optimizer", "optimizer+parameters"].index(offload)


def test_deepspeeds_own_message_is_passed_on() -> None:
    ours = zero3_config(config_of(), ranks=2)
    wrong = {**ours, "zero_optimization": {**ours["zero_optimization"], "no_such_setting": 1}}
    with pytest.raises(ConfigError, match=r"(?s)DeepSpeed rejects the configuration.*no_such_setting"):
        check_schema(wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"zero": ZeroConfig(offload="optimizer"), "workers": WorkerConfig(num_workers=0)},
            "zero.offload=optimizer needs DeepSpeed",
        ),
        ({"zero": ZeroConfig(overlap=True)}, "zero.overlap needs GPUs"),
    ],
)
def test_invalid_combinations_are_rejected(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(**changes)


def test_invalid_sizes_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"zero.reduce_bucket is below 1"):
        ZeroConfig(reduce_bucket=0)
    with pytest.raises(ConfigError, match=r"zero.prefetch_bucket=2000000000 exceeds zero.max_live"):
        ZeroConfig(prefetch_bucket=2 * 10**9)


def test_unknown_flags_are_rejected_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--zero.stage=2", "--precision=float16", "--zero.offload=disk"):
        with pytest.raises(SystemExit):
            configs.parse(TrainConfig, ["--dataset=d", "--run=r", flag])
        assert flag.removeprefix("--").partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "micro_batch_size"), [(8, 4), (64, 1)])
def test_deepspeed_accepts_the_papers_configuration(gpus: int, micro_batch_size: int) -> None:
    flags = [f"--workers.num_workers={gpus}", f"--micro_batch_size={micro_batch_size}"]
    config = configs.parse(
        TrainConfig, ["--config=jobs/configs/train-paper.yaml", "--dataset=none", "--run=none", *flags]
    )
    ours = zero3_config(config, gpus)
    check_schema(ours)
    assert ours["bf16"]["enabled"]
    assert gpus * micro_batch_size * ours["gradient_accumulation_steps"] == config.batch_size == 64
