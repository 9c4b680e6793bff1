"""The state of an erasure, below ``.erasing/`` of the prefix that it erases: written first, removed last."""

import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from lookalike.documents import parse_record, render_json
from lookalike.errors import BusyError, ConflictError
from lookalike.registry.erasure import Tracked
from lookalike.storage import Store
from lookalike.storage.erasing import FOLDER, MARKER
from pipelines.erase.scope import Scope

LEASE = f"{FOLDER}/lease"
_INVENTORY = f"{FOLDER}/inventory.json"


@dataclass(frozen=True)
class Marker:
    """Says that the prefix is being erased."""

    erasure: str
    """Random id, which names the receipt."""
    began: str
    """When, in UTC (ISO 8601)."""


@dataclass(frozen=True)
class Output:
    """A place outside of the prefix that a job wrote with the customer's model or photos, and that is removed whole."""

    uri: str
    kind: str
    """The result that it holds, such as ``generations``."""
    objects: int
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Holder:
    """A version of a shared data set that holds photos of the customer."""

    dataset: str
    version: int
    images: int
    """How many."""
    sha256: str
    """Fingerprint of its manifest, by which training runs name it."""


@dataclass(frozen=True)
class Learned:
    """A training run outside of the prefix that learned from the customer's photos or model. It is not removed."""

    run: str
    bundle_sha256: str
    """Of its bundle; empty if it has not finished."""
    anew: str
    """The commands that train it without them."""


@dataclass(frozen=True)
class Inventory:
    """What there was before anything was removed."""

    kinds: dict[str, list[int]]
    """Number of objects and bytes, by kind."""
    listing_sha256: str
    """Sum, modulo 2**256, of the SHA-256s of name, size and tag of each object: the same in any order of listing."""
    photos: int
    """Photos by content."""
    photos_sha256: str
    """SHA-256 of their sorted content hashes."""
    photos_key: str
    """Key of their content hashes below the prefix, as lines of a take-down list; empty in a plan."""
    unreadable: int
    """Tables and raw shards whose photos could not be listed, since they are damaged. They are removed all the same."""
    tracked: Tracked
    """In MLflow."""
    outputs: list[Output] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)
    learned: list[Learned] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    """Places outside that name the customer and that this software does not remove; the operator has to look."""
    requests: dict[str, list[int]] = field(default_factory=dict)
    """By the URI of a fleet's folder: the number of its requests and records of them, and bytes."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to erase."""
        return not self.kinds and self.tracked.is_empty and not self.outputs and not self.requests


def begin(scope: Scope) -> Marker:
    """Write the marker, after which nothing starts or commits below the prefix; or read that of an earlier attempt.

    Raises BusyError if the subject's whole customer is being erased.
    """
    if scope.subject and scope.customer_home.exists(MARKER):
        raise BusyError("its whole customer is being erased", value=scope.customer_home.uri, fix="finish that erasure")
    made = Marker(uuid.uuid4().hex, now())
    try:
        scope.home.create(MARKER, render_json(asdict(made)))
    except ConflictError:
        return parse_record(Marker, scope.home.read(MARKER), scope.home.uri_of(MARKER))
    return made


def photos_key(marker: Marker) -> str:
    """Where the photos' hashes lie; another erasure has another key, since lists are cached by their place."""
    return f"{FOLDER}/photos-{marker.erasure}.txt"


def read_inventory(home: Store) -> Inventory | None:
    """The inventory of an earlier attempt; None if it was killed before it had one."""
    if not home.exists(_INVENTORY):
        return None
    return parse_record(Inventory, home.read(_INVENTORY), home.uri_of(_INVENTORY))


def write_inventory(home: Store, inventory: Inventory) -> None:
    """Keep the inventory until the end."""
    home.write(_INVENTORY, render_json(asdict(inventory)))


def now() -> str:
    """The time in UTC (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")
