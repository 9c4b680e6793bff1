"""The champion: the version with the bundle that the newest entry of the promotion log names, found by its hash.

The registered model's tags name the log and its newest entry, so that a log which was moved, emptied or restored from
an older copy is an error, and not a model without a champion. MLflow's alias follows the log.
"""

import logging
from dataclasses import dataclass

from lookalike.errors import InputError, LookalikeError
from lookalike.registry.names import CHAMPION
from lookalike.registry.promotion_log import HOW_TO_CONTINUE, LOG_TAG, Head, Promotion, PromotionLog
from lookalike.registry.versions import ModelReference, Registry
from lookalike.storage import open_store

log = logging.getLogger(__name__)

HEAD_TAG = "promotion_log_head"  # NUMBER:SHA256 of the newest entry
_LOOKS = 5  # times that the alias is set again while other processes promote


@dataclass(frozen=True)
class Standing:
    """The state of one registered model, by its registry and its log, which were checked against each other."""

    name: str
    log: PromotionLog | None = None
    """None for a model without a log, which never had a champion."""
    head: Head | None = None
    """The newest entry."""
    champion: ModelReference | None = None
    """Its version; None if nothing was promoted, or if no version has that bundle."""
    alias: int | None = None
    """The version that MLflow shows as champion."""
    shown: str | None = None
    """The tag that names the newest entry. None: the registered model has no such tag."""

    @property
    def last(self) -> Promotion | None:
        """The newest entry."""
        return None if self.head is None else self.head.entry


def standing(registry: Registry, name: str, *, signed: bool = True) -> Standing | None:
    """Check ``name`` in the registry against its log; None if no such model is registered.

    With ``signed=False`` the newest entry's signature does not matter.

    Raises InputError if they contradict each other: entries are missing or were changed, or there is an alias or a
    promoted version and no entry.
    """
    tags = registry.model_tags(name)
    if tags is None:
        return None
    alias, shown = registry.alias(name, CHAMPION), tags.get(HEAD_TAG)
    if LOG_TAG not in tags:
        if alias is not None or shown or registry.was_promoted(name):
            raise InputError(
                f"{name} had a champion, and its tag {LOG_TAG!r}, which names its promotion log, is missing",
                value=registry.uri,
                fix=f"set the tag to the prefix of the log in MLflow, or {_BEGIN_ANEW}",
            )
        return Standing(name)
    entries = PromotionLog(open_store(tags[LOG_TAG]), name)
    head = entries.head(signed=signed)
    _check_shown(entries, head, shown)
    if head is None:
        if alias is not None or registry.was_promoted(name):
            seen = f"its alias names version {alias}" if alias is not None else "a version is tagged as promoted"
            raise InputError(
                f"{name} has an empty promotion log, although {seen}",
                value=entries.uri,
                fix=f"if the alias was set by hand, remove it; if entries were moved, {_RESTORE}; else {_BEGIN_ANEW}",
            )
        return Standing(name, entries, shown=shown)
    versions = registry.versions_of_bundle(name, head.entry.bundle_sha256)
    named = [version for version in versions if version.version == head.entry.version]
    matches = named or versions
    champion = matches[-1] if matches else None
    if champion is not None and champion.refused and shown != str(head):
        raise InputError(
            f"the promotion log names {champion} as champion in an entry that no promotion wrote: the gate refused it",
            value=entries.uri_of(head.entry.number),
            fix="remove that entry; if the bundle is good, promote it again",
        )
    return Standing(name, entries, head, champion, alias, shown)


def champion(registry: Registry, name: str) -> ModelReference | None:
    """Get the current champion, after MLflow's alias was updated to it; None if nothing was promoted.

    Raises InputError if there is no such model, if registry and log contradict each other, or if the champion's version
    was deleted.
    """
    now = project(registry, name)
    if now is None or now.last is None:
        return None
    if now.champion is None:
        raise unregistered(registry, now)
    return now.champion


def project(registry: Registry, name: str) -> Standing | None:
    """Update alias and tag from the log, and return the standing. A read-only registry is a warning, not an error."""
    now = standing(registry, name)
    for _ in range(_LOOKS):
        if now is None or now.head is None or now.champion is None:
            break
        number = int(now.champion.version or 0)
        if now.alias == number and now.shown == str(now.head):
            break
        if now.alias not in (None, number) and now.shown == str(now.head):
            log.warning(
                "the alias %r of %s named version %s; the promotion log names version %s, and so does the alias now",
                CHAMPION,
                name,
                now.alias,
                number,
            )
        try:
            registry.tag_model(name, HEAD_TAG, str(now.head))
            registry.set_alias(name, CHAMPION, number)
        except LookalikeError as error:
            log.warning("the alias %r of %s cannot be set: %s", CHAMPION, name, error)
            break
        now = standing(registry, name)  # look again: a promotion may have come in between
    return now


def unregistered(registry: Registry, now: Standing) -> InputError:
    """Return the error for a champion of the promotion log whose bundle no version in the registry has."""
    last = now.last
    assert last is not None
    earlier = ""
    if last.champion_before is not None:
        earlier = f", or return to the champion before it (jobs/promote.py rollback --model {now.name} --out NEW_PLACE)"
    # a registry that never saw the entry refuses all others until it has that one
    better = ", or promote a better one" if now.shown else ""
    return InputError(
        f"{now.name}: by the promotion log version {last.version} is champion (bundle {last.bundle_sha256[:12]}), and "
        "no version has that bundle: it was deleted in MLflow, or this is another or an older registry",
        value=registry.uri,
        fix="restore it by promoting that bundle again"
        f" (jobs/promote.py run --model {now.name} --scores {last.scores_uri or 'ITS_SCORES'} --out NEW_PLACE"
        f"{' --bundle ' + last.bundle_uri if last.bundle_uri else ''}){better}{earlier}",
    )


_RESTORE = (
    f"put them back there, or set the tag {LOG_TAG!r} of the registered model in MLflow to the folder that holds theirs"
)
_BEGIN_ANEW = (
    "start a new log with jobs/promote.py run --begin-anew REASON, which judges the candidate by the floors only"
)


def _check_shown(entries: PromotionLog, head: Head | None, shown: str | None) -> None:
    """Compare the log with the entry that the registered model's tag names."""
    if not shown:
        return
    number, _, sha256 = shown.partition(":")
    if not number.isdigit() or not sha256:
        raise InputError(
            f"the tag {HEAD_TAG!r} is not NUMBER:SHA256 of the newest entry of the promotion log",
            value=shown,
            fix=f"remove the tag in MLflow{'' if head is None else f', or set it to {head}'}",
        )
    if head is None or head.entry.number < int(number):
        there = "it is empty or not there" if head is None else f"its newest entry is {head.entry.number}"
        raise InputError(
            f"the promotion log lacks entry {int(number)}: {there}",
            value=entries.uri,
            fix=f"if it was moved or the model was renamed, {_RESTORE}; else {HOW_TO_CONTINUE}",
        )
    if entries.sha256_of(int(number)) != sha256:
        raise InputError(
            f"entry {int(number)} of the promotion log is not the one that was written",
            value=entries.uri_of(int(number)),
            fix=HOW_TO_CONTINUE,
        )
    entries.check_since(int(number), head)  # a promotion that was killed has not set the tag
