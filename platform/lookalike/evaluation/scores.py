"""``scores.json``: what an evaluation found, of which bundle, on which suite."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lookalike.errors import InputError
from lookalike.evaluation.metrics import Estimate

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
        try:
            raw = json.loads(data)
            return cls(
                bundle=Source(**raw["bundle"]),
                suite=Source(**raw["suite"]),
                conditions=raw["conditions"],
                metrics={name: Estimate(**values) for name, values in raw["metrics"].items()},
                embedder=raw.get("embedder", ""),
                base=Source(**raw["base"]) if raw.get("base") else None,
                config=raw.get("config", {}),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"no scores file: {error!r}", value=where, fix="name a scores.json of jobs/evaluate.py"
            ) from error
