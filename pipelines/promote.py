"""Promotion of a bundle: scores in, the gate's decision out."""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from lookalike import config as configs
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.gate import CHECK_TYPES, GateConfig
from lookalike.storage import Store, open_store, read_object
from lookalike.storage.claim import claim
from lookalike.storage.results import AGAIN, Kinds, check_each, read_result, write_result
from lookalike.tracking import tracking_uri
from lookalike.values import check_values

log = logging.getLogger(__name__)

DECISION = "decision.json"
_DECISION: Kinds = {
    **{"model": str, "version": int, "champion_before": (int, None)},
    **{"bundle_sha256": str, "promoted": bool, "checks": list},
}
# Locations: their content counts, by its hash. ``out`` is the decision's own place.
_NOT_IDENTITY = ("tracking", "require_promoted", "out", "scores", "bundle", "champion_scores", "log")


@dataclass(frozen=True)
class PromoteConfig:
    """Judge a bundle by its scores and make it champion, or record why not; or return to an earlier champion."""

    model: str
    """Name of the registered model: lower-case letters, digits, '_' and '-', or CUSTOMER--SUBJECT."""
    out: str
    """URI that receives decision.json."""
    scores: str | None = None
    """URI of the bundle's scores.json, or of the prefix that an evaluation wrote. Needed unless you roll back."""
    bundle: str | None = None
    """URI of the bundle, if it is not where the scores name it; in a rollback, of the earlier champion's bundle."""
    champion_scores: str | None = None
    """URI of the champion's scores; by default those that its version names. Without a champion only floors count."""
    log: str | None = None
    """Prefix of the promotion log of a model that is new (an existing one has its log); by default beside ``out``."""
    rollback: bool = False
    """Return to the champion before the current one, by a new entry of the log. No scores are needed."""
    rollback_to: int | None = None
    """Return to this version, which was champion before."""
    begin_anew: str | None = None
    """Begin the promotion log anew with this bundle, judged by the floors only, because the log or the champion is
    lost. The reason, in words: it is recorded in the log."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What a champion has to show."""
    require_promoted: bool = False
    """End with exit code 3 if the gate refuses; otherwise a refusal is a result like any other."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.returns and (self.scores or self.begin_anew is not None):
            raise ConfigError(
                "a rollback takes no scores, and does not begin the log anew",
                value=self.scores or self.begin_anew,
                fix="drop --scores and --begin-anew, or drop --rollback and --rollback-to",
            )
        if not self.returns and not self.scores:
            raise ConfigError("nothing to judge the bundle by", fix="name its scores with --scores, or use --rollback")
        if self.begin_anew is not None and not self.begin_anew.strip():
            raise ConfigError("begin_anew has no reason", fix="write --begin-anew 'the log was lost with its disk'")

    @property
    def returns(self) -> bool:
        """Whether this is a rollback."""
        return self.rollback or self.rollback_to is not None


def promote(config: PromoteConfig) -> dict[str, Any]:
    """Decide, record, write; returns what ``decision.json`` holds, with the ``champion`` as of now.

    The same configuration again returns the same decision. If the champion that it made was lost from the registry
    meanwhile, it is registered again.

    Raises:
        InputError: no bundle or no scores there, scores of another bundle, or a registry and a promotion log that
            contradict each other.
        ConflictError: ``config.out`` holds another decision.
        UnreachableError: MLflow or the store does not answer.
    """
    from lookalike.registry import validate_model_name

    name = validate_model_name(config.model)
    store = open_store(config.out)
    content: dict[str, Any] = {}
    if config.scores:
        from lookalike.registry import read_scores

        content = {"inputs": {"scores": configs.fingerprint(read_scores(config.scores).to_json().decode())}}
    settings = {key: value for key, value in configs.to_dict(config).items() if not _is_unset(key, value)}
    fingerprint = claim(store, settings, ignore=_NOT_IDENTITY, content=content)
    if store.exists(DECISION):
        return _earlier_decision(config, name, store, fingerprint)
    return _decide(config, name, store, fingerprint)


def _is_unset(key: str, value: Any) -> bool:
    """Whether a setting that earlier records lack has no effect."""
    return key in ("rollback", "rollback_to", "begin_anew") and not value


def _decide(config: PromoteConfig, name: str, store: Store, fingerprint: str) -> dict[str, Any]:
    from lookalike import registry

    writer = configs.fingerprint([fingerprint, store.uri])
    if config.returns:
        outcome = registry.rollback(
            name, tracking=config.tracking, writer=writer, version=config.rollback_to, bundle_uri=config.bundle
        )
    else:
        assert config.scores is not None
        scores = registry.read_scores(config.scores)
        candidate = registry.Candidate(name, config.bundle or scores.bundle.uri, config.scores)
        log_uri = config.log or store.parent.child("promotion-log").uri
        if config.begin_anew is not None:
            known = registry.standing_log(name, config.tracking)
            outcome = registry.begin_anew(
                candidate,
                tracking=config.tracking,
                log_uri=config.log or (None if known else log_uri),
                gate=config.gate,
                reason=config.begin_anew,
                writer=writer,
            )
        else:
            outcome = registry.promote(
                candidate,
                tracking=config.tracking,
                log_uri=log_uri,
                gate=config.gate,
                champion_scores_uri=config.champion_scores,
            )
    decision: dict[str, Any] = json.loads(outcome.to_json())
    write_result(store, DECISION, decision, fingerprint)
    return decision


def _is_of_version(config: PromoteConfig, name: str, decision: dict[str, Any]) -> bool:
    """Whether a decision without a seal, by an earlier version of this software, is of the bundle that was judged."""
    from lookalike import registry

    if config.scores and registry.read_scores(config.scores).bundle.sha256 != decision["bundle_sha256"]:
        return False
    registered = registry.Registry(tracking_uri(config.tracking))
    try:
        found = registered.version(name, decision["version"]).bundle_sha256
    except InputError:  # lost from the registry: the gate decides again
        return bool(decision["promoted"])
    return bool(found == decision["bundle_sha256"])


def _earlier_decision(config: PromoteConfig, name: str, store: Store, fingerprint: str) -> dict[str, Any]:
    from lookalike import registry

    where = store.uri_of(DECISION)
    sealed = read_result(store, DECISION, fingerprint, _DECISION)
    earlier = sealed or read_object(store, DECISION)
    promoted, sha256 = earlier["promoted"], earlier["bundle_sha256"]
    check_each(earlier["checks"], CHECK_TYPES, where)
    if earlier["model"] != name or (sealed is None and not _is_of_version(config, name, earlier)):
        what = f"the decision is not of this bundle of {name}, but of {earlier['model']!r:.80}"
        raise InputError(what, value=where, fix=AGAIN)
    if sealed is None:
        write_result(store, DECISION, earlier, fingerprint)
    if promoted and not config.returns and registry.is_lost(name, sha256, config.tracking):
        log.warning("the champion of this decision was lost from the registry; it is registered again")
        return _decide(config, name, store, fingerprint)
    log.info("this decision was made already: %s", store.uri)
    return {**earlier, "champion": registry.champion_now(name, config.tracking)}
