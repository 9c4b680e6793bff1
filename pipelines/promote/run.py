"""Promotion of a bundle: read its scores, let the gate decide, record the decision."""

import logging
from dataclasses import asdict
from typing import Any

from lookalike import config as configs
from lookalike import registry
from lookalike.errors import InputError
from lookalike.evaluation.gate import Check, GateConfig, gate_identity
from lookalike.storage import Store, open_store
from lookalike.storage.claim import AGAIN, read_result, run_once, write_result
from lookalike.tracking import tracking_uri
from pipelines.promote.config import HistoryConfig, PromoteConfig, RollbackConfig, SignConfig

log = logging.getLogger(__name__)

DECISION = "decision.json"
_DECISION = {
    **{"model": str, "version": int, "champion_before": int | None},
    **{"bundle_sha256": str, "promoted": bool, "checks": list[Check]},
}


def promote(config: PromoteConfig) -> dict[str, Any]:
    """Judge a bundle; returns the content of ``decision.json``, with the ``champion`` as of now.

    The same configuration again returns the same decision. If the champion that it made was lost from the registry
    meanwhile, it is registered again.

    Raises:
        InputError: no bundle or no scores at their place, scores of another bundle, or a registry and a promotion log
            that contradict each other.
        ConflictError: ``config.out`` holds another decision.
        UnreachableError: MLflow or the store does not answer.
    """
    registry.validate_model_name(config.model)
    scores = registry.scores_hash(registry.read_scores(config.scores))
    return _decide_once(config, {"inputs": {"scores": scores}, "gate": gate_identity(config.gate, "base")})


def rollback(config: RollbackConfig) -> dict[str, Any]:
    """Return to an earlier champion; returns the content of ``decision.json``, with the ``champion`` as of now.

    The same configuration again changes nothing.

    Raises:
        InputError: there is no earlier champion, or its bundle is not at its place.
        ConflictError: ``config.out`` holds another decision, or another promotion came in between.
        UnreachableError: MLflow or the store does not answer.
    """
    registry.validate_model_name(config.model)
    target = {"rollback": True} if config.to is None else {"rollback_to": config.to}
    # the default gate is part of the identity of a rollback: records of before there was a subcommand have it
    return _decide_once(config, {"gate": gate_identity(GateConfig(), "base"), **target})


def sign(config: SignConfig) -> dict[str, Any]:
    """Sign a promotion log; returns its newest entry. The same configuration again changes nothing.

    Raises:
        ConfigError: LOOKALIKE_SIGNING_KEY is not set, or is not a key that the operator trusts.
        InputError: no such model or no log, or a log that is damaged.
        ConflictError: another promotion came in between.
        UnreachableError: MLflow or the store does not answer.
    """
    return asdict(registry.sign_log(_registry(config), config.model, reason=config.reason))


def history(config: HistoryConfig) -> list[dict[str, Any]]:
    """The entries of a model's promotion log since it was begun (anew), oldest first.

    Raises:
        InputError: no such model, no promotion log, or a log that is damaged.
        UnreachableError: MLflow or the store does not answer.
    """
    name, models = registry.validate_model_name(config.model), _registry(config)
    entries = models.promotion_log(name)
    if entries is None:
        raise InputError(f"{name} has no promotion log", value=models.uri, fix="check the name, or promote a bundle")
    return [asdict(entry) for entry in entries.entries()]


def _registry(config: PromoteConfig | RollbackConfig | HistoryConfig | SignConfig) -> registry.Registry:
    return registry.Registry(tracking_uri(config.tracking))


def _decide_once(config: PromoteConfig | RollbackConfig, content: dict[str, Any]) -> dict[str, Any]:
    store = open_store(config.out)
    return run_once(
        store,
        DECISION,
        config,
        content=content,
        earlier=lambda run: _earlier_decision(config, store, run),
        work=lambda run: _decide(config, store, run),
    )


def _decide(config: PromoteConfig | RollbackConfig, store: Store, fingerprint: str) -> dict[str, Any]:
    models, writer = _registry(config), configs.fingerprint([fingerprint, store.uri])
    decision_uri = store.uri_of(DECISION)
    if isinstance(config, RollbackConfig):
        outcome = registry.rollback(
            models,
            config.model,
            writer=writer,
            reason=config.reason,
            version=config.to,
            bundle_uri=config.bundle,
            decision_uri=decision_uri,
        )
    else:
        bundle = config.bundle or registry.read_scores(config.scores).bundle.uri
        candidate = registry.Candidate(config.model, bundle, config.scores)
        beside = store.parent.child("promotion-log").uri
        if config.begin_anew is not None:
            outcome = registry.begin_anew(
                models,
                candidate,
                log_uri=config.log,
                new_log_uri=beside,
                gate=config.gate,
                reason=config.begin_anew,
                writer=writer,
                decision_uri=decision_uri,
            )
        else:
            outcome = registry.promote(
                models,
                candidate,
                log_uri=config.log or beside,
                gate=config.gate,
                champion_scores_uri=config.champion_scores,
                decision_uri=decision_uri,
            )
    decision = configs.to_dict(outcome)
    write_result(store, DECISION, decision, fingerprint)
    return decision


def _is_of_version(config: PromoteConfig | RollbackConfig, decision: dict[str, Any]) -> bool:
    """Whether a decision without a seal, by an earlier version of this software, is of the bundle that was judged.

    A bundle that the registry has lost counts as the same if the decision was to promote it: the gate decides again.
    """
    sha256 = decision["bundle_sha256"]
    if isinstance(config, PromoteConfig) and registry.read_scores(config.scores).bundle.sha256 != sha256:
        return False
    try:
        return _registry(config).version(config.model, decision["version"]).bundle_sha256 == str(sha256)
    except InputError:
        return bool(decision["promoted"])


def _earlier_decision(config: PromoteConfig | RollbackConfig, store: Store, fingerprint: str) -> dict[str, Any]:
    name, where = config.model, store.uri_of(DECISION)
    earlier, sealed = read_result(store, DECISION, fingerprint, _DECISION)
    if earlier["model"] != name or (not sealed and not _is_of_version(config, earlier)):
        what = f"the decision is not of this bundle of {name}, but of {earlier['model']!r:.80}"
        raise InputError(what, value=where, fix=AGAIN)
    if not sealed:
        write_result(store, DECISION, earlier, fingerprint)
    models, sha256 = _registry(config), earlier["bundle_sha256"]
    if earlier["promoted"] and isinstance(config, PromoteConfig) and registry.is_lost(models, name, sha256):
        log.warning("the champion of this decision was lost from the registry; it is registered again")
        return _decide(config, store, fingerprint)
    return {**earlier, "champion": registry.champion_version(models, name)}
