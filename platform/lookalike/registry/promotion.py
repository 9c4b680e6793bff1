"""Promotion: register a candidate, let the gate compare it with the champion, and record the decision."""

import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from lookalike.errors import ConflictError, InputError
from lookalike.evaluation import verdict
from lookalike.evaluation.gate import Check, Decision, GateConfig, decide
from lookalike.evaluation.scores import Scores
from lookalike.registry.candidate import (
    Candidate,
    Examined,
    proven_scores,
    read_candidate,
    read_scores,
    scores_hash,
    version_tags,
)
from lookalike.registry.champions import Standing, champion, project, standing, unregistered
from lookalike.registry.evidence import Evidence
from lookalike.registry.names import validate_model_name
from lookalike.registry.operator import operator
from lookalike.registry.promotion_log import LOG_TAG, Kind, Promotion, PromotionLog
from lookalike.registry.versions import DECISION_TAG, ModelReference, Registry

log = logging.getLogger(__name__)

_RACES = 5  # times that another promotion may come first before this one gives up


@dataclass(frozen=True)
class Outcome:
    """The decision about one candidate: the content of ``decision.json``."""

    model: str
    """Name of the registered model."""
    version: int
    """The candidate's version; refused candidates have one as well."""
    promoted: bool
    """Whether the gate let it become champion."""
    checks: tuple[Check, ...]
    """The gate's checks."""
    champion_before: int | None
    """The version that was champion when the gate decided."""
    bundle_uri: str
    """The candidate's bundle."""
    bundle_sha256: str
    """Its identity."""
    scores_uri: str
    """The scores that it was judged by."""
    kind: Kind = "promoted"
    """How it became champion, see :class:`~lookalike.registry.promotion_log.Promotion`."""
    champion: int | None = None
    """The version that is champion, read back from the registry and its log afterwards."""
    verdict: str = ""
    """The decision in one sentence for people who do not know the metrics."""
    advice: tuple[str, ...] = ()
    """What can be done about a refusal."""
    evidence: Evidence | None = None
    """What the decision rests on; None if the log has it from an earlier version of this software."""


def promote(
    registry: Registry,
    candidate: Candidate,
    *,
    log_uri: str,
    gate: GateConfig,
    champion_scores_uri: str | None = None,
    decision_uri: str | None = None,
) -> Outcome:
    """Register ``candidate`` and make it champion if it passes ``gate``. The same call again gives the same champion.

    Args:
        registry: MLflow's.
        candidate: bundle and scores.
        log_uri: prefix for the promotion log of a model that is new; an existing model has its own.
        gate: floors and comparisons.
        champion_scores_uri: by default those that the champion's version names.
        decision_uri: where the caller records the outcome; the version's tag names it.

    Raises:
        InputError: the bundle or the scores are missing, the scores belong to another bundle, or the registry and the
            log contradict each other.
        UnreachableError: MLflow or the store does not answer, or (RefusedError) the user lacks a permission.
        ConflictError: other promotions of the model came first, several times.
    """
    name = validate_model_name(candidate.model)
    examined = read_candidate(candidate, gate)
    sha256, scores = examined.sha256, examined.scores
    known = registry.readable_tags(name)
    tags = version_tags(candidate, sha256, known.get(LOG_TAG, log_uri))
    registry.ensure_model(name, log_uri)
    version: ModelReference | None = None
    for _ in range(_RACES):
        now = _standing(registry, name, log_uri)
        last = now.last
        _check_known(registry, now, sha256)
        _log_of(now).entries()  # an entry that was changed is an error before another one is chained to it
        version = version or registry.register(name, tags)
        before = None if last is None else last.version
        decision, kind, evidence = _judge(registry, now, version, examined, gate, champion_scores_uri)
        if last is not None and kind is None and decision.passed:  # an earlier attempt came this far
            before = last.champion_before if last.scores_sha256 == scores_hash(scores) else last.version
        elif kind is not None and decision.passed:
            made = entry(now, version, candidate.scores_uri, scores_hash(scores), decision, kind, evidence)
            registry.withdraw_refusal(version)
            try:
                _log_of(now).append(made)
            except ConflictError:
                log.info("another version of %s was promoted meanwhile; judging again", name)
                continue
        is_champion = last is not None and last.bundle_sha256 == sha256
        made_by = Made(kind or "promoted", evidence, decision_uri)
        return conclude(registry, version, decision, candidate.scores_uri, before, made_by, is_champion)
    raise ConflictError(
        f"other promotions of this model came first {_RACES} times", value=name, fix="run the promotion again"
    )


def entry(
    now: Standing,
    version: ModelReference,
    scores_uri: str,
    scores_sha256: str,
    decision: Decision,
    kind: Kind,
    evidence: Evidence | None,
) -> Promotion:
    """Make the next entry of the log."""
    last = now.last
    return Promotion(
        number=1 if last is None else last.number + 1,
        version=int(version.version or 0),
        bundle_sha256=version.bundle_sha256,
        scores_sha256=scores_sha256,
        champion_before=None if last is None else last.version,
        checks=list(decision.checks),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        writer=uuid.uuid4().hex,
        kind=kind,
        bundle_uri=version.bundle_uri,
        scores_uri=scores_uri,
        previous_sha256=None if now.head is None else now.head.sha256,
        evidence=evidence,
        by=operator(),
    )


@dataclass(frozen=True)
class Made:
    """How a decision was made."""

    kind: Kind
    """See :class:`~lookalike.registry.promotion_log.Promotion`."""
    evidence: Evidence | None
    """What it rests on."""
    decision_uri: str | None = None
    """Where the caller records it."""


def conclude(
    registry: Registry,
    version: ModelReference,
    decision: Decision,
    scores_uri: str,
    before: int | None,
    made: Made,
    is_champion: bool,
) -> Outcome:
    """Update alias and tags from the log, and read the champion back."""
    name = str(version.name)
    project(registry, name)
    tags = {"scores_uri": scores_uri} | ({} if made.decision_uri is None else {DECISION_TAG: made.decision_uri})
    if decision.passed:
        registry.tag(version, {"gate": "promoted", **tags})
    elif not is_champion:  # a champion keeps the scores that made it one
        registry.tag(version, {"gate": "refused", **tags})
    return Outcome(
        model=name,
        version=int(version.version or 0),
        promoted=decision.passed,
        checks=decision.checks,
        champion_before=before,
        bundle_uri=version.bundle_uri,
        bundle_sha256=version.bundle_sha256,
        scores_uri=scores_uri,
        kind=made.kind,
        champion=champion_version(registry, name),
        verdict=verdict.sentence(decision),
        advice=tuple(verdict.advice(decision)),
        evidence=made.evidence,
    )


def champion_version(registry: Registry, name: str) -> int | None:
    """The version of the current champion by registry and log; None, with a warning, if it cannot be loaded."""
    try:
        current = champion(registry, name)
    except InputError as error:
        log.warning("%s", error)
        return None
    return None if current is None else current.version


def _standing(registry: Registry, name: str, log_uri: str) -> Standing:
    now = standing(registry, name)
    if now is not None and now.log is None:  # registered by other means, and nothing was promoted
        registry.tag_model(name, LOG_TAG, log_uri)
        now = standing(registry, name)
    if now is None:
        what = f"{name} was removed from the registry during the promotion"
        raise InputError(what, value=registry.uri, fix="run the promotion again")
    return now


def _check_known(registry: Registry, now: Standing, sha256: str) -> None:
    """Raise InputError if the registry has none of the log's entries, unless the candidate is the log's champion."""
    last = now.last
    if last is None or now.champion is not None or now.shown or last.bundle_sha256 == sha256:
        return
    error = unregistered(registry, now)
    raise InputError(
        f"{error.what}, or the log is another registry's",
        value=f"{registry.uri}, log {_log_of(now).uri}",
        fix="promote the bundle that the log names first, which registers it here"
        f" ({last.bundle_uri or 'of version ' + str(last.version)}, scores {last.scores_uri or 'of its evaluation'});"
        " or start over with --begin-anew REASON, with --log for a log of its own",
    )


def _judge(
    registry: Registry,
    now: Standing,
    version: ModelReference,
    examined: Examined,
    gate: GateConfig,
    champion_scores_uri: str | None,
) -> tuple[Decision, Kind | None, Evidence | None]:
    """The decision, the kind of entry that it calls for if it passed (None: the log has it), and its evidence."""
    last, evidence = now.last, examined.evidence
    if last is None or last.bundle_sha256 != version.bundle_sha256:
        champion_scores = _champion_scores(registry, now, champion_scores_uri)
        return decide(examined.proven, champion_scores, gate, examined.differences), "promoted", evidence
    known = now.champion is not None and now.champion.version == version.version
    kind: Kind | None = None if known else "registered again"
    if last.scores_sha256 == scores_hash(examined.scores):
        return Decision(tuple(last.checks)), kind, last.evidence
    # the champion itself with other scores: it cannot beat itself
    return decide(examined.proven, None, gate, examined.differences), kind, evidence


def _champion_scores(registry: Registry, now: Standing, uri: str | None) -> Scores | None:
    last = now.last
    if last is None:
        return None
    shown = str(now.champion or f"version {last.version} of {now.name}")
    uri = uri or (now.champion.scores_uri if now.champion else None) or last.scores_uri
    if uri is None:
        raise InputError(
            f"the scores of the champion, {shown}, are not known",
            value=registry.uri,
            fix="name them with --champion_scores; if they are lost, evaluate its bundle again",
        )
    try:
        scores = proven_scores(read_scores(uri), uri)
    except InputError as error:
        raise InputError(
            f"the scores of the champion, {shown}, cannot be read: {error.what}",
            value=uri,
            fix="name their place with --champion_scores; if they are lost, evaluate its bundle again",
        ) from error
    if scores.bundle.sha256 != last.bundle_sha256:
        raise InputError(
            f"these are not the scores of the champion, {shown}",
            value=uri,
            fix="evaluate the champion's bundle, and name those scores with --champion_scores",
        )
    return scores


def _log_of(now: Standing) -> PromotionLog:
    assert now.log is not None
    return now.log
