"""The promotion log, which says which version is champion, by conditional puts. MLflow's alias follows it.

Setting an alias is not a compare-and-set and keeps no history. So each promotion of a model is an object with the next
number, created only if it is not there: of two concurrent promotions one wins, and the other judges again. Each
entry holds the hash of the one before, so that an entry that was changed or removed later is noticed.

With ``LOOKALIKE_SIGNING_KEY`` in the environment each new entry is signed (:mod:`lookalike.signing`), together with the
model's name. Then whoever may write to the store, but has not the key, can add no entry: after a signed entry an
unsigned one is an error, and with ``LOOKALIKE_TRUSTED_KEYS`` the newest entry must be signed by one of these keys. It
confirms all entries before it, by their hashes.
"""

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lookalike.config import canonical_json
from lookalike.documents import parse_record
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.gate import Check
from lookalike.registry.evidence import Evidence
from lookalike.signing import (
    SIGNING_KEY,
    TRUSTED_KEYS,
    public_key_shown,
    public_key_text,
    sign,
    signing_key,
    trusted_keys,
    verify,
)
from lookalike.storage import Store

log = logging.getLogger(__name__)

LOG_TAG = "promotion_log"
Kind = Literal["promoted", "registered again", "rolled back", "begun anew", "signed"]

_ANEW: Kind = "begun anew"
_ENTRY = re.compile(r"(?!0{8})(\d{8})\.json")
HOW_TO_CONTINUE = (
    "restore it from a copy, or start a new log with jobs/promote.py run --begin-anew REASON, "
    "which judges the candidate by the floors only"
)


@dataclass(frozen=True)
class Promotion:
    """One entry of the log. Entries of earlier versions of this software have no fields after ``writer``."""

    number: int
    """1, 2, 3, …"""
    version: int
    """The model version that became champion; a hint, since MLflow starts numbering again after a model was deleted."""
    bundle_sha256: str
    """Its bundle: the champion's identity."""
    scores_sha256: str
    """Hash of the scores that it was judged by."""
    champion_before: int | None
    """The version that it followed."""
    checks: list[Check]
    """The gate's checks."""
    time: str
    """When, in UTC (ISO 8601)."""
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Id of the promotion that wrote the entry."""
    kind: Kind = "promoted"
    """``registered again``: the champion got another version or location. ``rolled back``: to the entry
    ``returns_to``. ``begun anew``: the entries before do not count. ``signed``: the champion stays, and the entry's
    signature confirms those before."""
    reason: str = ""
    """The user's reason for anything but a promotion."""
    returns_to: int | None = None
    """The entry whose champion this one brings back."""
    bundle_uri: str | None = None
    """Where the bundle was."""
    scores_uri: str | None = None
    """Where its scores were."""
    previous_sha256: str | None = None
    """Hash of the bytes of the entry before; None in the first one, and in entries of earlier versions."""
    evidence: Evidence | None = None
    """What the decision rests on; None in entries of earlier versions."""
    by: str = ""
    """Who wrote it (:func:`lookalike.registry.operator.operator`); empty in entries of earlier versions."""
    public_key: str | None = None
    """The public key that ``signature`` belongs to; None in an entry that is not signed."""
    signature: str | None = None
    """Of :func:`signed_document`."""


@dataclass(frozen=True)
class Head:
    """The newest entry with the hash of its bytes."""

    entry: Promotion
    sha256: str

    def __str__(self) -> str:
        return f"{self.entry.number:08d}:{self.sha256}"


class PromotionLog:
    """The log of one registered model, below ``store``. Objects with names unlike ``00000001.json`` are ignored."""

    def __init__(self, store: Store, name: str) -> None:
        self.prefix, self._name, self._store = store.uri, name, store.child(name)

    @property
    def uri(self) -> str:
        """URI of the entries."""
        return self._store.uri

    def numbers(self) -> list[int]:
        """List the numbers of the entries, ascending; other objects are named in a warning."""
        keys = [info.key for info in self._store.list()]
        foreign = [key for key in keys if not _ENTRY.fullmatch(key)]
        if foreign:
            names = ", ".join(foreign[:10])
            log.warning("these objects are not entries of the promotion log and are ignored: %s", names)
        return sorted(int(match.group(1)) for key in keys if (match := _ENTRY.fullmatch(key)))

    def head(self, *, signed: bool = True) -> Head | None:
        """The newest entry.

        Raises InputError if one before it is missing, if it is damaged, or, unless ``signed`` is False, if it has not
        the signature that it needs.
        """
        numbers = self.numbers()
        if not numbers:
            return None
        self._check_complete(numbers)
        head = self._read(numbers[-1])
        if signed:
            self._check_signed(head.entry)
        return head

    def entries(self) -> list[Promotion]:
        """All promotions since the log was begun (anew), oldest first. Raises InputError if one was changed."""
        head = self.head()
        return [] if head is None else self.entries_to(head)

    def entries_to(self, head: Head) -> list[Promotion]:
        """As :meth:`entries`, up to ``head``."""
        return [item.entry for item in reversed(self._chain(head, 1))]

    def check_since(self, number: int, head: Head) -> None:
        """Raise InputError unless the entries after ``number`` up to ``head`` are chained to it and to each other."""
        for item in self._chain(head, number):
            if item.entry.number > max(number, 1) and not item.entry.previous_sha256 and item.entry.kind != _ANEW:
                raise InputError(
                    f"entry {item.entry.number} of the promotion log does not name the one before by its hash",
                    value=self.uri_of(item.entry.number),
                    fix=f"if no promotion of yours wrote it, remove it; else {HOW_TO_CONTINUE}",
                )

    def _chain(self, head: Head, first: int) -> list[Head]:
        """Read the entries from ``head`` back to ``first``, or to the entry that began a new log."""
        chain = [head]
        while chain[-1].entry.number > first and chain[-1].entry.kind != _ANEW:
            after, before = chain[-1].entry, self._read(chain[-1].entry.number - 1)
            if after.previous_sha256 not in (None, before.sha256):
                raise InputError(
                    f"entry {before.entry.number} of the promotion log was changed after {after.number} was written",
                    value=self.uri_of(before.entry.number),
                    fix=HOW_TO_CONTINUE,
                )
            if after.previous_sha256 is None and before.entry.previous_sha256 is not None:
                raise InputError(  # only entries of earlier versions, which come first, name no entry before
                    f"entry {after.number} of the promotion log does not name the one before by its hash",
                    value=self.uri_of(after.number),
                    fix=HOW_TO_CONTINUE,
                )
            chain.append(before)
        return chain

    def sha256_of(self, number: int) -> str | None:
        """Hash of an entry's bytes; None if the entry does not exist."""
        key = _key(number)
        return hashlib.sha256(self._store.read(key)).hexdigest() if self._store.exists(key) else None

    def append(self, promotion: Promotion) -> None:
        """Add the entry, signed if the environment has a key.

        Raises:
            ConflictError: another promotion took its number.
            InputError: the log's entries are signed, and there is no key.
            ConfigError: the key is not valid, or not one that the operator trusts.
        """
        entry = asdict(self._signed(promotion))
        self._store.create(_key(promotion.number), canonical_json(entry).encode())

    def _signed(self, promotion: Promotion) -> Promotion:
        key, trusted = signing_key(), trusted_keys()
        if key is None:
            if trusted or self._is_signed(promotion.number - 1):
                what, fix = "the entries of this promotion log are signed, and there is no key", f"set {SIGNING_KEY}"
                raise InputError(what, value=self.uri, fix=fix)
            return promotion
        public = public_key_text(key)
        if trusted and public not in trusted:
            what = f"the key of {SIGNING_KEY} is not one that {TRUSTED_KEYS} names"
            raise ConfigError(what, value=public, fix="add it there, or sign with another key")
        unsigned = replace(promotion, public_key=public)
        written = json.loads(canonical_json(asdict(unsigned)))  # as it will be read
        return replace(unsigned, signature=sign(key, signed_document(self._name, written)))

    def _is_signed(self, number: int) -> bool:
        """Whether an entry exists and has a signature; False for one that is damaged."""
        if number < 1 or not self._store.exists(_key(number)):
            return False
        try:
            return self._read(number).entry.signature is not None
        except InputError:
            return False

    def _check_signed(self, head: Promotion) -> None:
        """Raise InputError unless the newest entry is signed as it has to be."""
        trusted = trusted_keys()
        if head.signature is not None and (not trusted or head.public_key in trusted):
            return
        if trusted:
            by = "not signed" if head.public_key is None else f"signed by the key {public_key_shown(head.public_key)}"
            what = f"entry {head.number} of the promotion log is {by}, which {TRUSTED_KEYS} does not name"
        elif self._is_signed(head.number - 1):
            what = f"entry {head.number} of the promotion log is not signed, and the one before is"
        else:
            return
        fix = "if no promotion of yours wrote it, remove it; else confirm the log: jobs/promote.py sign --model "
        fix += f"{self._name} --reason REASON, with {SIGNING_KEY}"
        raise InputError(what, value=self.uri_of(head.number), fix=fix)

    def _check_complete(self, numbers: list[int]) -> None:
        run = [numbers[-1]]  # backwards, as far as no number is missing
        for number in reversed(numbers[:-1]):
            if number != run[-1] - 1:
                break
            run.append(number)
        if run[-1] == 1 or any(self._read(number).entry.kind == _ANEW for number in run):
            return
        raise InputError("the promotion log lacks an entry", value=self.uri_of(run[-1] - 1), fix=HOW_TO_CONTINUE)

    def _read(self, number: int) -> Head:
        data = self._store.read(_key(number))
        where, what = self.uri_of(number), f"entry {number} of the promotion log is damaged"
        try:
            entry = parse_record(Promotion, data, where)
        except InputError as error:
            raise InputError(f"{what}: {error.what}", value=where, fix=HOW_TO_CONTINUE) from None
        if entry.number != number:
            raise InputError(f"{what}: its number is {entry.number}", value=where, fix=HOW_TO_CONTINUE)
        if (entry.signature is None) != (entry.public_key is None):
            raise InputError(f"{what}: it has a key or a signature, not both", value=where, fix=HOW_TO_CONTINUE)
        if entry.signature is not None and entry.public_key is not None:
            try:
                verify(entry.public_key, signed_document(self._name, json.loads(data)), entry.signature)
            except InputError as error:
                raise InputError(f"{what}: {error.what}", value=where, fix=HOW_TO_CONTINUE) from None
        return Head(entry, hashlib.sha256(data).hexdigest())

    def uri_of(self, number: int) -> str:
        """URI of an entry."""
        return self._store.uri_of(_key(number))


def signed_document(model: str, entry: Mapping[str, Any]) -> bytes:
    """The bytes that a signature of an entry covers: the entry as JSON without its signature, and the model's name, so
    that it holds in no other model's log."""
    covered = {name: value for name, value in entry.items() if name != "signature"}
    return canonical_json({"lookalike": "promotion log entry", "model": model, "entry": covered}).encode()


def _key(number: int) -> str:
    return f"{number:08d}.json"
