"""Promotion: register a candidate, let the gate judge it against the champion, and record who won."""

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from lookalike.config import fingerprint
from lookalike.errors import ConflictError, InputError
from lookalike.evaluation.gate import Check, Decision, GateConfig, decide
from lookalike.evaluation.scores import SCORES, Scores
from lookalike.models.bundle import MANIFEST
from lookalike.registry.names import validate_model_name
from lookalike.registry.promotions import Promotion
from lookalike.registry.versions import ModelReference, Registry, identify
from lookalike.storage import locate_object, open_store, read_object
from lookalike.tracking import tracking_uri

log = logging.getLogger(__name__)

_RACES = 5  # promotions of one model that may overtake this one before it gives up


@dataclass(frozen=True)
class Candidate:
    """A bundle that wants to become champion."""

    model: str
    """Name of the registered model: an identifier, or ``CUSTOMER--SUBJECT``."""
    bundle_uri: str
    """Where the bundle is."""
    scores_uri: str
    """Its ``scores.json``, or the prefix that holds one."""
    run_id: str | None = None
    """The tracker's run that trained it."""


@dataclass(frozen=True)
class Outcome:
    """What ``decision.json`` holds."""

    model: str
    """Name of the registered model."""
    version: int
    """The candidate's version; refused candidates have one as well."""
    promoted: bool
    """Whether the candidate is champion now."""
    checks: tuple[Check, ...]
    """What the gate looked at."""
    champion_before: int | None
    """The version that was champion when the gate decided."""
    bundle_uri: str
    """The candidate's bundle."""
    bundle_sha256: str
    """Its identity."""
    scores_uri: str
    """What it was judged by."""

    def to_json(self) -> bytes:
        """The file's bytes."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


def promote(
    candidate: Candidate,
    *,
    tracking: str | None,
    log_uri: str,
    gate: GateConfig,
    champion_scores_uri: str | None = None,
) -> Outcome:
    """Register ``candidate`` and make it champion if ``gate`` lets it. The same call again gives the same champion.

    Args:
        candidate: bundle and scores.
        tracking: MLflow's URI; None takes the environment's.
        log_uri: prefix for the promotion log of a model that is new; an existing model has its own.
        gate: floors and comparisons.
        champion_scores_uri: by default those that the champion's version names.

    Raises:
        InputError: no bundle or scores there, or scores of another bundle.
        UnreachableError: MLflow or the store does not answer.
        ConflictError: other promotions of the model kept winning.
    """
    name = validate_model_name(candidate.model)
    bundle_uri, sha256 = open_store(candidate.bundle_uri).uri, identify(candidate.bundle_uri)
    scores = read_scores(candidate.scores_uri)
    if scores.bundle.sha256 != sha256:
        raise InputError(
            "these scores are another bundle's",
            value=f"{candidate.scores_uri}: {scores.bundle.uri}",
            fix=f"evaluate {bundle_uri} first",
        )
    registry = Registry(tracking_uri(tracking))
    promotions = registry.ensure_model(name, log_uri)
    tags = {"bundle_uri": bundle_uri, "bundle_sha256": sha256, "scores_uri": candidate.scores_uri}
    version = registry.register(name, tags | {"parent": _parent(bundle_uri)}, candidate.run_id)

    scores_sha256 = fingerprint(scores.to_json().decode())
    for _ in range(_RACES):
        last = promotions.last()
        before = None if last is None else last.version
        if last is not None and (last.bundle_sha256, last.scores_sha256) == (sha256, scores_sha256):
            # An earlier attempt came this far.
            before, decision = last.champion_before, Decision(tuple(Check(**check) for check in last.checks))
        elif last is not None and last.bundle_sha256 == sha256:
            decision = decide(scores, None, gate)  # the champion itself with other scores: it cannot beat itself
        else:
            decision = decide(scores, _champion_scores(registry, name, last, champion_scores_uri), gate)
            if decision.passed:
                try:
                    promotions.append(_entry(last, version, scores_sha256, decision))
                except ConflictError:
                    log.info("another version of %s was promoted meanwhile; judging again", name)
                    continue
        registry.project(name, promotions)
        _tag(
            registry, version, decision, candidate.scores_uri, is_champion=decision.passed or before == version.version
        )
        return Outcome(
            model=name,
            version=int(version.version or 0),
            promoted=decision.passed,
            checks=decision.checks,
            champion_before=before,
            bundle_uri=bundle_uri,
            bundle_sha256=sha256,
            scores_uri=candidate.scores_uri,
        )
    raise ConflictError("others kept promoting this model", value=name, fix="run the promotion again")


def read_scores(uri: str) -> Scores:
    """The scores at ``uri``: a file, or the prefix that an evaluation wrote to."""
    store, key = locate_object(uri) if uri.endswith(".json") else (open_store(uri), SCORES)
    return Scores.from_json(store.read(key), uri)


def _champion_scores(registry: Registry, name: str, last: Promotion | None, uri: str | None) -> Scores | None:
    if last is None:
        return None
    champion = registry.find(name, version=last.version)
    uri = uri or champion.scores_uri
    if uri is None:
        raise InputError(f"{champion} has no scores", value=registry.uri, fix="evaluate it, and name --champion_scores")
    scores = read_scores(uri)
    if scores.bundle.sha256 != champion.bundle_sha256:
        raise InputError(f"these are not the scores of {champion}", value=uri, fix="evaluate the champion's bundle")
    return scores


def _entry(last: Promotion | None, version: ModelReference, scores_sha256: str, decision: Decision) -> Promotion:
    return Promotion(
        number=1 if last is None else last.number + 1,
        version=int(version.version or 0),
        bundle_sha256=version.bundle_sha256,
        scores_sha256=scores_sha256,
        champion_before=None if last is None else last.version,
        checks=[asdict(check) for check in decision.checks],
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _tag(
    registry: Registry, version: ModelReference, decision: Decision, scores_uri: str, *, is_champion: bool
) -> None:
    if decision.passed:
        registry.tag(version, {"gate": "promoted", "scores_uri": scores_uri})
    elif not is_champion:  # a champion keeps the scores that made it one
        registry.tag(version, {"gate": "refused", "scores_uri": scores_uri})


def _parent(bundle_uri: str) -> str:
    base = read_object(open_store(bundle_uri), MANIFEST).get("base")
    return str(base["sha256"]) if base else ""
