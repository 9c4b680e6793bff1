"""Rebuild the registered models of a lost MLflow from the store: versions, tags, and the alias of the champion.

The promotion log says which bundles were champions, and each ``decision.json`` which version a candidate got and what
the gate said. Versions get the numbers that they had. MLflow numbers them itself, so a number of which nothing is
recorded (a version that was deleted, or whose decision was) is used up by a version that is deleted at once. If two
bundles had one number, since the model was once deleted and begun again, the newer one keeps it, and the other gets a
number above all others.

A model that MLflow holds already is only completed: if it contradicts the store in anything, nothing of it is changed.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lookalike.errors import InputError, LookalikeError
from lookalike.registry.candidate import Candidate, version_tags
from lookalike.registry.champions import project
from lookalike.registry.inventory import Bundles
from lookalike.registry.promotion_log import LOG_TAG, Head, Promotion, PromotionLog
from lookalike.registry.records import DecisionRecord, Found, Records
from lookalike.registry.versions import DECISION_TAG, Registry
from lookalike.storage import open_store

log = logging.getLogger(__name__)

_MOST_GAPS = 1000  # numbers without a record, in one model; a damaged record could name any number


@dataclass
class ModelPlan:
    """What the store says about one registered model, and what became of it."""

    name: str
    log_uri: str | None = None
    """Prefix of its promotion log."""
    head: str | None = None
    """The newest entry, ``NUMBER:SHA256``."""
    champion: int | None = None
    """The version that is champion."""
    versions: dict[int, dict[str, str]] = field(default_factory=dict)
    """Tags of each version by its number."""
    notes: list[str] = field(default_factory=list)
    """What could not be restored as it was, with the reason."""
    problem: str | None = None
    """Why nothing of this model is done; None if there is no obstacle."""
    missing: list[int] = field(default_factory=list)
    """Versions that the registry lacks."""
    done: bool = False
    """Whether the registry agrees with the store now."""


def plan_models(found: Found) -> Iterator[ModelPlan]:
    """Plan each model that was found, by name."""
    bundles = Bundles(found.bundles)
    for name in sorted(found.models):
        yield _plan(found.models[name], bundles)


def _plan(records: Records, bundles: Bundles) -> ModelPlan:
    plan = ModelPlan(records.name)
    try:
        entries, head = _log(records, plan)
    except LookalikeError as error:
        plan.problem = str(error)
        return plan
    numbered = _number(records, entries, plan)
    for number, (sha256, recorded) in sorted(numbered.items()):
        tags = _tags(plan, number, sha256, recorded, _about(records, entries, number, sha256, head), bundles)
        if tags is not None:
            plan.versions[number] = tags
    if head is not None:
        champions = [n for n, tags in plan.versions.items() if tags["bundle_sha256"] == head.entry.bundle_sha256]
        same = [number for number in champions if number == head.entry.version]
        plan.head, plan.champion = str(head), max(same or champions, default=None)
        if plan.champion is None:
            plan.problem = f"its champion, version {head.entry.version}, cannot be registered: {plan.notes[-1]}"
    return plan


def _log(records: Records, plan: ModelPlan) -> tuple[list[Promotion], Head | None]:
    """Read the model's log, if it has one. Raises InputError if it is damaged, missing, or one of several."""
    if len(records.logs) > 1:
        raise InputError("there are several promotion logs", value=records.logs, fix="name the right one with --log")
    if not records.logs:
        if promoted := [record.uri for record in records.decisions if record.promoted]:
            what, fix = "it had a champion, and there is no promotion log", "name its log with --log"
            raise InputError(what, value=promoted[0], fix=fix)
        return [], None
    plan.log_uri = records.logs[0]
    entries = PromotionLog(open_store(plan.log_uri), records.name)
    head = entries.head()
    assert head is not None, "the listing has found an entry"
    return entries.entries_to(head), head


def _number(records: Records, entries: Sequence[Promotion], plan: ModelPlan) -> dict[int, tuple[str, str | None]]:
    """Give each bundle its version number: number → (hash, recorded place). What is newer comes first."""
    claims = [(entry.version, entry.bundle_sha256, entry.bundle_uri) for entry in reversed(entries)]
    newest_first = sorted(records.decisions, key=lambda record: (record.modified, record.uri), reverse=True)
    claims += [(record.version, record.bundle_sha256, record.bundle_uri) for record in newest_first]
    numbered: dict[int, tuple[str, str | None]] = {}
    others: list[tuple[int, str, str | None]] = []
    most = len({number for number, *_ in claims}) + _MOST_GAPS
    for number, sha256, place in claims:
        if not 1 <= number <= most or numbered.get(number, (sha256,))[0] != sha256:
            others.append((number, sha256, place))
        elif number not in numbered or numbered[number][1] is None:
            numbered[number] = (sha256, place)
    last = max(numbered, default=0)
    for number, sha256, place in reversed(others):
        if sha256 in {each for each, _ in numbered.values()}:
            continue
        last += 1
        numbered[last] = (sha256, place)
        plan.notes.append(f"version {number}, bundle {sha256[:12]}, becomes version {last}: another bundle is {number}")
    if gaps := [number for number in range(1, last) if number not in numbered]:
        shown = ", ".join(map(str, gaps[:10])) + (", …" if len(gaps) > 10 else "")
        plan.notes.append(f"nothing is recorded of {len(gaps)} versions ({shown}): these numbers are left out")
    return numbered


@dataclass(frozen=True)
class _About:
    """What was recorded about one version."""

    entries: list[Promotion]
    decision: DecisionRecord | None
    """The one that its tags show."""


def _about(records: Records, entries: Sequence[Promotion], number: int, sha256: str, head: Head | None) -> _About:
    of_bundle = [record for record in records.decisions if record.bundle_sha256 == sha256]
    of_version = [record for record in of_bundle if record.version == number] or of_bundle
    of_version.sort(key=lambda record: (record.modified, record.uri))
    if head is not None and head.entry.bundle_sha256 == sha256:  # a champion keeps what made it one
        of_version = [record for record in of_version if record.promoted]
    about = [entry for entry in entries if entry.bundle_sha256 == sha256]
    return _About(about, of_version[-1] if of_version else None)


def _tags(
    plan: ModelPlan, number: int, sha256: str, recorded: str | None, about: _About, bundles: Bundles
) -> dict[str, str] | None:
    """The tags of a version as they were; None, with a note, if it cannot be registered."""
    entry = about.entries[-1] if about.entries else None
    decision = about.decision
    scores_uri = decision.scores_uri if decision else (entry.scores_uri if entry else None) or ""
    promoted = decision.promoted if decision else entry is not None
    outcome = {"gate": "promoted" if promoted else "refused"}
    if decision is not None:
        outcome[DECISION_TAG] = decision.uri
    log_uri = plan.log_uri or (decision.uri.rpartition("/")[0] if decision else "")
    refused: InputError | None = None
    for place in bundles.places(sha256, recorded):
        try:
            tags = version_tags(Candidate(plan.name, place, scores_uri), sha256, log_uri)
        except InputError as error:  # it belongs to another customer, or lies below another one's prefix
            refused = error
            continue
        if place != recorded:
            plan.notes.append(f"version {number}: its bundle is now at {place}")
        return {**tags, **outcome}
    if refused is not None or recorded is None:
        why = refused or f"the place of its bundle {sha256[:12]} is not recorded"
        plan.notes.append(f"version {number} is left out: {why}")
        return None
    plan.notes.append(f"version {number}: its bundle {sha256[:12]} is not at {recorded}, nor below the stores")
    return {"bundle_uri": recorded, "bundle_sha256": sha256, "scores_uri": scores_uri, **outcome}


def compare(registry: Registry, plan: ModelPlan) -> None:
    """Find what the registry lacks (``plan.missing``), and what contradicts the store (``plan.problem``)."""
    if plan.problem is not None:
        return
    tags = registry.model_tags(plan.name)
    held = {} if tags is None else registry.contents(plan.name)
    plan.missing = [number for number in plan.versions if number not in held]
    last = max(held, default=0)
    other = [n for n in held if n in plan.versions and held[n] != plan.versions[n]["bundle_sha256"]]
    named = (tags or {}).get(LOG_TAG)
    if other:
        plan.problem = f"MLflow's version {other[0]} is another bundle than the store's"
    elif named is not None and plan.log_uri is not None and open_store(named).uri != open_store(plan.log_uri).uri:
        plan.problem = f"MLflow names another promotion log, {named}, than {plan.log_uri}"
    elif deleted := [number for number in plan.missing if number < last]:
        plan.notes.append(
            f"version {deleted[0]} was deleted in MLflow, and numbers are given once; "
            "to have the bundle again, promote it again"
        )
        plan.missing = [number for number in plan.missing if number > last]


def apply(registry: Registry, plan: ModelPlan) -> None:
    """Register what is missing, and set the alias. Killed at any moment, it continues with the next version.

    Raises:
        ConflictError: another process registers versions of the model.
        InputError: registry and log contradict each other.
        UnreachableError: MLflow does not answer, or (RefusedError) the user lacks a permission.
    """
    name = plan.name
    registry.ensure_model(name, plan.log_uri)
    if plan.log_uri is not None and LOG_TAG not in (registry.model_tags(name) or {}):
        registry.tag_model(name, LOG_TAG, plan.log_uri)
    registry.finish_trials(name)
    for number in plan.missing:
        registry.create_at(name, number, plan.versions[number])
    if plan.log_uri is not None:
        project(registry, name)
    plan.missing, plan.done = [], True
