"""Recovery on request: return to an earlier champion, begin a new promotion log, or confirm one by a signature."""

import logging
import uuid
from dataclasses import replace
from datetime import UTC, datetime

from lookalike.bundles.transfer import verify_bundle
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.evaluation.gate import Decision, GateConfig, decide
from lookalike.registry.candidate import Candidate, read_candidate, scores_hash, version_tags
from lookalike.registry.champions import HEAD_TAG, Standing, project, standing
from lookalike.registry.names import validate_model_name
from lookalike.registry.operator import operator
from lookalike.registry.promotion import Made, Outcome, conclude, entry
from lookalike.registry.promotion_log import LOG_TAG, Promotion, PromotionLog
from lookalike.registry.versions import ModelReference, Registry
from lookalike.signing import SIGNING_KEY, public_key_text, signing_key
from lookalike.storage import open_store

log = logging.getLogger(__name__)


def rollback(
    registry: Registry,
    model: str,
    *,
    writer: str,
    reason: str,
    version: int | None = None,
    bundle_uri: str | None = None,
    decision_uri: str | None = None,
) -> Outcome:
    """Return to the champion before the current one, or to ``version``, by a new entry of the log.

    Rolling back again returns to the one before that. The scores of the old decision stand.

    Args:
        registry: MLflow's.
        model: name of the registered model.
        writer: identity of this rollback: the same one again changes nothing while it is the newest entry.
        reason: in words, for the log.
        version: of an earlier champion.
        bundle_uri: of that champion's bundle, if it was moved.
        decision_uri: where the caller records the outcome.

    Raises:
        InputError: there is no earlier champion, or its bundle is not at its place.
        ConflictError: another promotion came in between.
    """
    name = validate_model_name(model)
    now = standing(registry, name)
    if now is None or now.log is None or now.last is None:
        raise InputError(f"{name} has no champion to roll back", value=registry.uri, fix="promote a bundle first")
    last, entries = now.last, now.log.entries()
    if last.writer == writer:
        target, before = last, last.champion_before
    else:
        target, before = _target(registry, now, entries, version), last.version
    reference = _registered(registry, now, target, bundle_uri)
    decision = Decision(tuple(target.checks))
    scores_uri = reference.scores_uri or target.scores_uri or ""
    if last.writer != writer:
        made = entry(now, reference, scores_uri, target.scores_sha256, decision, "rolled back", target.evidence)
        registry.withdraw_refusal(reference)
        _append(now.log, replace(made, writer=writer, reason=reason, returns_to=target.number), name)
    made_by = Made("rolled back", target.evidence, decision_uri)
    return conclude(registry, reference, decision, scores_uri, before, made_by, is_champion=True)


def begin_anew(
    registry: Registry,
    candidate: Candidate,
    *,
    log_uri: str | None,
    new_log_uri: str,
    gate: GateConfig,
    reason: str,
    writer: str,
    decision_uri: str | None = None,
) -> Outcome:
    """Judge ``candidate`` by the floors only, and begin a new log with it. For a log or a champion that is lost.

    The entry records the ``reason``; earlier entries stay in their place and no longer count.

    Args:
        registry: MLflow's.
        candidate: bundle and scores.
        log_uri: prefix of the log from now on; None keeps the model's.
        new_log_uri: prefix of the log of a model that has none, if ``log_uri`` is None.
        gate: of which only the floors count.
        reason: in words, for the log.
        writer: identity of this attempt: the same one again changes nothing while it is the newest entry.
        decision_uri: where the caller records the outcome.

    Raises:
        InputError: the bundle or the scores are missing, or the scores belong to another bundle.
        ConflictError: another promotion came in between.
    """
    name = validate_model_name(candidate.model)
    examined = read_candidate(candidate, gate)
    tags = registry.readable_tags(name)
    uri = log_uri or tags.get(LOG_TAG, new_log_uri)
    described = version_tags(candidate, examined.sha256, uri)
    registry.ensure_model(name, uri)
    version = registry.register(name, described)
    entries = PromotionLog(open_store(uri), name)
    numbers = entries.numbers()
    decision = decide(examined.proven, None, gate, examined.differences)
    evidence = examined.evidence
    if decision.passed:
        shown = tags.get(HEAD_TAG, "").partition(":")[0]
        known = int(shown) if shown.isdigit() else 0
        if not (numbers and _is_ours(entries, writer)):
            nothing = Standing(name, entries)
            judged = scores_hash(examined.scores)
            made = entry(nothing, version, candidate.scores_uri, judged, decision, "begun anew", evidence)
            number = max([*numbers, known]) + 1
            registry.withdraw_refusal(version)
            _append(entries, replace(made, number=number, writer=writer, reason=reason), name)
            log.warning("the promotion log of %s is begun anew with entry %d: %s", name, number, reason)
        registry.tag_model(name, LOG_TAG, uri)
        registry.tag_model(name, HEAD_TAG, str(entries.head()))
    made_by = Made("begun anew", evidence, decision_uri)
    return conclude(registry, version, decision, candidate.scores_uri, None, made_by, is_champion=False)


def sign_log(registry: Registry, model: str, *, reason: str) -> Promotion:
    """Vouch for the promotion log of ``model`` by an entry that is signed with the operator's key.

    For a log that was begun without a key, or whose newest entry was signed by a key that is no longer trusted. The
    champion stays. Returns the new entry, or the newest one if the same key has signed it already.

    Raises:
        ConfigError: there is no key, or it is not one that the operator trusts.
        InputError: no such model, nothing was promoted, or registry and log contradict each other.
        ConflictError: another promotion came in between.
    """
    name, key = validate_model_name(model), signing_key()
    if key is None:
        raise ConfigError("there is no key to sign with", fix=f"set {SIGNING_KEY}")
    now = standing(registry, name, signed=False)
    if now is None or now.log is None or now.head is None:
        raise InputError(f"{name} has no promotion log to sign", value=registry.uri, fix="promote a bundle first")
    last = now.head.entry
    if last.public_key == public_key_text(key):
        return last
    now.log.entries_to(now.head)  # an entry that was changed is an error before this one confirms it
    made = replace(
        last,
        number=last.number + 1,
        kind="signed",
        reason=reason,
        returns_to=last.number,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        writer=uuid.uuid4().hex,
        by=operator(),
        previous_sha256=now.head.sha256,
        public_key=None,
        signature=None,
    )
    _append(now.log, made, name)
    project(registry, name)
    head = now.log.head()
    assert head is not None
    return head.entry


def _append(entries: PromotionLog, made: Promotion, name: str) -> None:
    try:
        entries.append(made)
    except ConflictError as error:
        raise ConflictError(
            "another promotion of this model came in between", value=name, fix="run the same command again"
        ) from error


def _is_ours(entries: PromotionLog, writer: str) -> bool:
    try:
        head = entries.head()
    except InputError:  # the log is begun anew because it is damaged
        return False
    return head is not None and head.entry.writer == writer


def _target(registry: Registry, now: Standing, entries: list[Promotion], version: int | None) -> Promotion:
    """Find the entry whose champion is to become champion again."""
    last = entries[-1]
    champions = sorted({item.version for item in entries if item.bundle_sha256 != last.bundle_sha256})
    if version is not None:
        sha256 = registry.version(now.name, version).bundle_sha256
        matches = [item for item in entries if item.bundle_sha256 == sha256]
        if not matches or sha256 == last.bundle_sha256:
            raise InputError(
                f"version {version} of {now.name} "
                + ("is champion already" if matches else "was never champion by the log"),
                value=registry.uri,
                fix=f"choose from {champions}" if champions else "promote another bundle",
            )
        return matches[-1]
    current = last
    while current.kind in ("rolled back", "signed") and current.returns_to is not None:  # its place is that one's
        current = next(item for item in entries if item.number == current.returns_to)
    for item in reversed(entries):
        if item.number < current.number and item.bundle_sha256 not in (current.bundle_sha256, last.bundle_sha256):
            return item
    raise InputError(
        f"{now.name} had no champion before version {last.version}",
        value=registry.uri,
        fix=f"name another champion with --to: {champions}" if champions else "promote another bundle",
    )


def _registered(registry: Registry, now: Standing, target: Promotion, bundle_uri: str | None) -> ModelReference:
    """The version of the entry's bundle at a place that holds it; registered again if the registry has none."""
    name = now.name
    assert now.log is not None
    versions = registry.versions_of_bundle(name, target.bundle_sha256)
    places = [bundle_uri] if bundle_uri else [*(item.bundle_uri for item in reversed(versions)), target.bundle_uri]
    for place in filter(None, places):
        if _is_at(place, target.bundle_sha256):
            scores_uri = (
                next((item.scores_uri for item in versions if item.scores_uri), None) or target.scores_uri or ""
            )
            candidate = Candidate(name, place, scores_uri)
            return registry.register(name, version_tags(candidate, target.bundle_sha256, now.log.prefix))
    raise InputError(
        f"the bundle {target.bundle_sha256[:12]}, champion by entry {target.number} of the promotion log, is missing",
        value=[place for place in places if place],
        fix="restore it, or name its place with --bundle",
    )


def _is_at(place: str, sha256: str) -> bool:
    try:
        return verify_bundle(place) == sha256
    except InputError:
        return False


def is_lost(registry: Registry, name: str, bundle_sha256: str) -> bool:
    """Whether this bundle is the log's champion and the registry no longer has a version of it."""
    now = standing(registry, name)
    if now is None:
        return True
    return now.last is not None and now.last.bundle_sha256 == bundle_sha256 and now.champion is None
