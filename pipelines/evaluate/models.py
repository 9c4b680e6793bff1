"""Pin the models of an evaluation's judge: names on the Hub are resolved once, by the job's own process."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lookalike.annotators.embedder import EMBEDDERS
from lookalike.annotators.hub import pinned
from pipelines.evaluate.config import EvaluateConfig


def with_pinned_models(config: EvaluateConfig) -> EvaluateConfig:
    """Return the configuration with ``id@commit`` for each Hub id of a metric's model.

    So the calibration and every worker load the weights of one commit, also if the Hub gets another one during the run.
    Raises ConfigError if a model does not exist.
    """
    metrics: dict[str, Any] = {
        name: {**given, "model": pinned(given["model"], f"model of {name}")} if _has_model(given) else given
        for name, given in config.metrics.items()
    }
    return replace(
        config,
        embedder=config.embedder if config.embedder in EMBEDDERS else pinned(config.embedder, "embedder"),
        clip=config.clip and pinned(config.clip, "CLIP model"),
        dino=config.dino and pinned(config.dino, "DINO model"),
        metrics=metrics,
    )


def _has_model(given: Any) -> bool:
    return isinstance(given, Mapping) and isinstance(given.get("model"), str)
