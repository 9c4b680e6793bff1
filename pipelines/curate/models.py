"""Pin the models of a curation: names on the Hub are resolved once, by the job's own process."""

from dataclasses import fields, replace
from typing import Any

from lookalike.annotators.embedder import EMBEDDERS
from lookalike.annotators.hub import pinned
from pipelines.curate.config import CurateConfig


def with_pinned_models(config: CurateConfig) -> CurateConfig:
    """Return the configuration with ``id@commit`` for each Hub id of an embedder, scorer or captioner.

    So every worker loads the weights of one commit, also if the Hub gets another one during the run. Raises ConfigError
    if a model does not exist.
    """
    filters: dict[str, Any] = {}
    for name in (each.name for each in fields(config.filters)):
        step = getattr(config.filters, name)
        if (model := getattr(step, "model", None)) is not None and name not in config.filters.skip:
            filters[name] = replace(step, model=pinned(model))
    captioner = config.captioner
    if captioner is not None:
        captioner = replace(captioner, model=pinned(captioner.model, "captioner"))
    embedder = config.embedder if config.embedder in EMBEDDERS else pinned(config.embedder, "embedder")
    return replace(config, embedder=embedder, captioner=captioner, filters=replace(config.filters, **filters))
