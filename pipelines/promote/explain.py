"""Why a version of a model was promoted or refused, from the record of the decision or from the promotion log."""

from typing import Any

from lookalike import registry
from lookalike.config import to_dict
from lookalike.errors import InputError
from lookalike.evaluation import verdict
from lookalike.evaluation.gate import Check, Decision
from lookalike.registry.evidence import Evidence
from lookalike.storage import locate_object, read_members
from lookalike.tracking import tracking_uri
from pipelines.promote.config import ExplainConfig


def explain(config: ExplainConfig) -> dict[str, Any]:
    """Return the decision about a version: ``model``, ``version``, ``promoted``, ``checks``, ``verdict``, ``advice``,
    ``evidence`` (None in decisions of earlier versions of this software), ``champion`` as of now, and ``source``, where
    it was read.

    The record is ``decision.json``, which the version's tag names. Without it, an entry of the promotion log is shown,
    which promoted versions have.

    Raises:
        InputError: no such model or version, or neither a record nor an entry of it.
        UnreachableError: MLflow or the store does not answer.
    """
    name, models = registry.validate_model_name(config.model), registry.Registry(tracking_uri(config.tracking))
    version = models.version(name, config.version)
    found = _recorded(version) or _logged(models, version)
    if found is None:
        raise InputError(
            f"the decision about {version} was not recorded, or its record was removed",
            value=version.decision_uri or models.uri,
            fix=f"judge it again: jobs/promote.py run --model {name} --scores {version.scores_uri or 'ITS_SCORES'}"
            f" --bundle {version.bundle_uri} --out NEW_PLACE",
        )
    return found | {"champion": registry.champion_version(models, name)}


def _recorded(version: registry.ModelReference) -> dict[str, Any] | None:
    """The record that the version's tag names; None if there is none, or it is of another bundle."""
    if version.decision_uri is None:
        return None
    store, key = locate_object(version.decision_uri)
    if not store.exists(key):
        return None
    types = {"model": str, "bundle_sha256": str, "promoted": bool, "checks": list[Check], "evidence": Evidence | None}
    record = read_members(store, key, types)
    if (record["model"], record["bundle_sha256"]) != (version.name, version.bundle_sha256):
        return None
    names = ("model", "version", "promoted", "checks", "verdict", "advice", "evidence")
    return {name: record[name] for name in names} | {"source": version.decision_uri}


def _logged(models: registry.Registry, version: registry.ModelReference) -> dict[str, Any] | None:
    """The newest entry of the promotion log about the version's bundle; None if it was never champion."""
    log = models.promotion_log(str(version.name))
    entries = [] if log is None else [item for item in log.entries() if item.bundle_sha256 == version.bundle_sha256]
    if log is None or not entries:
        return None
    decision, plain = Decision(tuple(entries[-1].checks)), to_dict(entries[-1])
    return {
        "model": version.name,
        "version": version.version,
        "promoted": True,
        "checks": plain["checks"],
        "verdict": verdict.sentence(decision),
        "advice": verdict.advice(decision),
        "evidence": plain["evidence"],
        "source": log.uri_of(entries[-1].number),
    }
