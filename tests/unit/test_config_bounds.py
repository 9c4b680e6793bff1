"""Counts that would only fill the memory are refused when settings are parsed."""

from typing import Any

import pytest

from lookalike.annotators.captioner import Captioner
from lookalike.errors import ConfigError
from pipelines.actors import ActorConfig
from pipelines.curate.captions import CaptionsConfig
from pipelines.curate.config import FoundConfig, PlanConfig, ShardsConfig
from pipelines.evaluate import EvaluateConfig
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
