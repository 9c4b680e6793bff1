"""``scores.json``: what an evaluation found, of which bundle, on which suite."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lookalike.documents import decoding, parse_object
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.metrics import Estimate
from lookalike.values import check_values

Conditions = Literal["right", "shuffled"]

SCORES = "scores.json"
GRID = "grid.png"


@dataclass(frozen=True)
class Source:
    """An input of the evaluation, pinned by its content."""

    uri: str
    """Where it lay."""
    sha256: str
    """Bundle: fingerprint of its components. Suite: fingerprint of the snapshot's manifest."""
    version: int | None = None
    """Version of the snapshot; None for a bundle."""


@dataclass(frozen=True)
class Scores:
    """The result of one evaluation.

    Metrics (each an :class:`~lookalike.evaluation.metrics.Estimate`; the interval resamples subjects):
    ``loss_right``, ``loss_shuffled``: held-out flow-matching loss with the sample's own conditions and with those of
    another subject, on the same noise at the same levels; ``loss_gap``: shuffled − right, sample by sample.
    ``mllm_only/loss_*``: the same without reference latents. ``identity``: cosine of the image embeddings of a
    generated image and its references; ``identity_margin``: the same minus the cosine to another subject's
    references. ``SETTING/identity``: at another setting of the stages. ``clip_i``, ``clip_t``, ``dino_i``: where the
    models were given.
    """

    bundle: Source
    suite: Source
    conditions: Conditions
    """``shuffled``: every sample got another subject's conditions, a probe that a gate has to refuse."""
    metrics: dict[str, Estimate]
    embedder: str = ""
    """Revision of the embedder behind ``identity``."""
    base: Source | None = None
    """The bundle that this one was compared with; its metrics are ``before/NAME``."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the evaluation."""

    def to_json(self) -> bytes:
        """The file's bytes."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Scores":
        """Read a file's bytes; ``where`` names it in errors. A file of another kind is an InputError."""
        fix = "name a scores.json of jobs/evaluate.py"
        raw = parse_object(data, where, "bundle", "suite", "conditions", "metrics", fix=fix)
        with decoding("a scores file", where, fix=fix):
            scores = cls(
                bundle=Source(**raw["bundle"]),
                suite=Source(**raw["suite"]),
                conditions=raw["conditions"],
                metrics={name: Estimate(**values) for name, values in raw["metrics"].items()},
                embedder=raw.get("embedder", ""),
                base=Source(**raw["base"]) if raw.get("base") else None,
                config=raw.get("config", {}),
            )
            for name, estimate in scores.metrics.items():
                _check_estimate(name, estimate)
        try:
            for source in filter(None, (scores.bundle, scores.suite, scores.base)):
                check_values(source)
            check_values(scores)
        except ConfigError as error:
            raise InputError(f"a damaged scores file: {error.what}", value=where, fix=fix) from error
        return scores


def _check_estimate(name: str, estimate: Estimate) -> None:
    """Raise TypeError unless its members are numbers; NaN is what was not measured."""
    for value in (estimate.mean, estimate.low, estimate.high, estimate.n):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} has {value!r} in the place of a number")
        float(value)  # an integer of hundreds of digits is none of ours
