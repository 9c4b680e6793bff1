"""The list of aggregators: how each one pools the MLLM's layers, and for which tokens apart. No torch at import.

A new aggregator is a pooling class in a file of its own and one line here: see README.md.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from lookalike.errors import ConfigError


@dataclass(frozen=True)
class Aggregator:
    """One kind of aggregation."""

    pooling: str
    """``module:Class``, a :class:`lookalike.models.pooling.Pooling`; imported when a model is built."""
    branches: tuple[str, ...] = ("all",)
    """Token groups with weights of their own: ``("all",)``, or ``("text", "image")``."""

    def pooling_class(self) -> Any:
        """Import the pooling class."""
        module, _, name = self.pooling.partition(":")
        return getattr(importlib.import_module(module), name)


AGGREGATORS = {
    "last_layer": Aggregator("lookalike.models.pooling:LastLayer"),
    "layer_mean": Aggregator("lookalike.models.pooling:LayerMean"),
    "single_lap": Aggregator("lookalike.models.pooling:LayerPooling"),
    "dla": Aggregator("lookalike.models.pooling:LayerPooling", branches=("text", "image")),
}
"""By ``aggregator.kind`` of a preset: the last hidden state; the mean of all; Layerwise Attention Pooling (UniFusion,
arXiv 2510.12789) of all tokens; Dual Layer Aggregation (Squeeze-MLLM, arXiv 2605.26111), one LAP for text and one for
image tokens."""


def aggregator_of(kind: str) -> Aggregator:
    """Return the aggregator of that name. Raises ConfigError, which lists the names, if there is none."""
    if kind not in AGGREGATORS:
        raise ConfigError("unknown kind of aggregator", value=kind, fix=f"use one of {', '.join(AGGREGATORS)}")
    return AGGREGATORS[kind]
