"""Promotion of a bundle: scores in, the gate's decision out."""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from lookalike import config as configs
from lookalike.evaluation.gate import GateConfig
from lookalike.storage import open_store, read_object
from lookalike.storage.claim import claim
from lookalike.values import check_values

log = logging.getLogger(__name__)

DECISION = "decision.json"


@dataclass(frozen=True)
class PromoteConfig:
    """Judge a bundle by its scores and make it champion, or say why not."""

    model: str
    """Name of the registered model: lower-case letters, digits, '_' and '-', or CUSTOMER--SUBJECT."""
    scores: str
    """URI of the bundle's scores.json, or of the prefix that an evaluation wrote."""
    out: str
    """URI that receives decision.json."""
    bundle: str | None = None
    """URI of the bundle; by default the one that the scores name."""
    champion_scores: str | None = None
    """URI of the champion's scores; by default those that its version names. Without a champion only floors count."""
    log: str | None = None
    """Prefix of the promotion log of a model that is new (an existing one has its log); by default beside ``out``."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What a champion has to show."""
    require_promoted: bool = False
    """End with exit code 3 where the gate refuses; otherwise a refusal is a result like any other."""

    def __post_init__(self) -> None:
        check_values(self)


def promote(config: PromoteConfig) -> dict[str, Any]:
    """Decide, record, write; returns what ``decision.json`` holds. The same configuration again returns at once.

    Raises:
        InputError: no bundle or no scores there, or scores of another bundle.
        ConflictError: ``config.out`` holds another decision.
        UnreachableError: MLflow or the store does not answer.
    """
    from lookalike.registry import Candidate, read_scores, validate_model_name
    from lookalike.registry import promote as decide_and_record

    name = validate_model_name(config.model)
    scores = read_scores(config.scores)
    store = open_store(config.out)
    inputs = {"scores": configs.fingerprint(scores.to_json().decode())}
    claim(store, {**configs.to_dict(config), "inputs": inputs}, ignore=("tracking", "require_promoted"))
    if store.exists(DECISION):
        log.info("this decision was made already: %s", store.uri)
        return read_object(store, DECISION)
    outcome = decide_and_record(
        Candidate(name, config.bundle or scores.bundle.uri, config.scores),
        tracking=config.tracking,
        log_uri=config.log or store.parent.child("promotion-log").uri,
        gate=config.gate,
        champion_scores_uri=config.champion_scores,
    )
    store.write(DECISION, outcome.to_json())
    return dict(json.loads(outcome.to_json()))
