"""Every configuration checks its values at construction; counts that would only fill the memory are refused."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from lookalike.annotators.captioner import Captioner
from lookalike.errors import ConfigError
from lookalike.training.average import EmaConfig
from lookalike.training.config import TrainConfig
from lookalike.training.loop_config import CheckpointConfig, DropoutConfig, SafetyConfig, ValidationConfig
from lookalike.training.workers import WorkerConfig
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig
from pipelines.curate.captions import CaptionsConfig
from pipelines.curate.config import FoundConfig, PlanConfig, ShardsConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.finetune import FinetuneConfig
from pipelines.generate import GenerateConfig
from pipelines.ingest import IngestConfig
from pipelines.ingest.config import SampleWorldConfig

_GENERATE = {"model": "m", "out": "o", "prompt": ["p"], "reference": ["r"]}
_EVALUATE = {"bundle": "b", "suite": "s", "out": "o"}


@pytest.mark.parametrize(
    ("config_class", "values", "name"),
    [
        (GenerateConfig, _GENERATE, "num_images"),
        (GenerateConfig, _GENERATE, "batch_size"),
        (GenerateConfig, _GENERATE, "steps"),
        (EvaluateConfig, _EVALUATE, "subjects"),
        (EvaluateConfig, _EVALUATE, "loss_batch_size"),
        (ActorConfig, {}, "count"),
        (ActorConfig, {}, "threads"),
        (SampleWorldConfig, {}, "subjects"),
        (SampleWorldConfig, {}, "views"),
        (IngestConfig, {"source": "s", "raw": "r"}, "max_file_mib"),
        (PlanConfig, {}, "max_references"),
        (PlanConfig, {}, "rows_per_partition"),
        (FoundConfig, {}, "images_per_cell"),
        (ShardsConfig, {}, "image_size"),
        (CaptionsConfig, {}, "max_characters"),
        (Captioner, {"model": "m"}, "max_tokens"),
    ],
)
def test_excessive_count_is_refused_by_name(config_class: Any, values: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"\b{name} is (above|out of range)"):
        config_class(**values, **{name: 10**12})


def _classes_within(config_class: Any) -> Iterator[Any]:
    yield config_class
    for hint in get_type_hints(config_class).values():
        for group in filter(dataclasses.is_dataclass, (hint, *get_args(hint))):
            yield from _classes_within(group)


def _valid_value(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Literal else {int: 1, float: 1.0}.get(hint, "x")


@pytest.mark.parametrize(
    "config_class",
    dict.fromkeys(group for job in (CurateConfig, FinetuneConfig, TrainConfig) for group in _classes_within(job)),
    ids=lambda config_class: config_class.__name__,
)
def test_every_group_of_settings_checks_its_values(config_class: Any) -> None:
    hints = get_type_hints(config_class)
    required = {
        item.name: _valid_value(hints[item.name])
        for item in dataclasses.fields(config_class)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    for item in dataclasses.fields(config_class):
        with pytest.raises(ConfigError, match=rf"\b{item.name}\b"):
            config_class(**required | {item.name: object()})


@pytest.mark.parametrize(
    ("config_class", "name", "value", "message"),
    [
        (ValidationConfig, "every", 0, r"validation\.every is below 1 \(0\); use 1 or more"),
        (CheckpointConfig, "keep_every", 0, r"checkpoint\.keep_every is below 1"),
        (DropoutConfig, "mllm", 1.0, r"dropout\.mllm is not below 1 \(1\.0\); use a number below 1"),
        (DropoutConfig, "references", -0.1, r"dropout\.references is below 0"),
        (EmaConfig, "decay", 0, r"ema\.decay is not above 0 \(0\); use a number above 0"),
        (
            SafetyConfig,
            "max_quarantined_share",
            1.5,
            r"safety\.max_quarantined_share is above 1 \(1\.5\); use 1 or less",
        ),
        (WorkerConfig, "num_workers", -1, r"workers\.num_workers is below 0"),
        (WorkerConfig, "min_workers", 3, "min_workers exceeds workers"),
        (ShardsConfig, "buckets", [(512, 8)], r"shards\.buckets\[0\]\[1\] is below 16"),
        (ShardsConfig, "buckets", [], "buckets has no size"),
    ],
)
def test_value_outside_its_bounds_is_refused_with_its_section(
    config_class: Any, name: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_class(**{name: value})
