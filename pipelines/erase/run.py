"""Erase a customer or a subject: stop, list, remove, check, sign. Each step can be repeated after a kill."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lookalike.errors import ConfigError, LookalikeError
from lookalike.progress.events import EventLog
from lookalike.progress.webhooks import Deliverer, check_webhook, deliver_all
from lookalike.registry.erasure import TrackedErasure
from lookalike.signing import SIGNING_KEY, signing_key
from lookalike.storage import Store, locate_object, open_store
from lookalike.storage.erasing import FOLDER, MARKER
from lookalike.storage.lease import hold
from lookalike.storage.purge import entries, purge, remove_if_empty
from lookalike.tracking import tracking_uri
from pipelines.erase import caches, fleets, receipt, shared, state, stop
from pipelines.erase.config import EraseConfig, PlanConfig
from pipelines.erase.inventory import take
from pipelines.erase.outside import Outside
from pipelines.erase.scope import Scope
from pipelines.erase.state import Inventory

log = logging.getLogger(__name__)

_RECEIPTS = "receipts"
_ATTEMPTS = 3  # of removing what a job wrote between its last look at the marker and its end
_SHOWN = 10


@dataclass(frozen=True)
class Outcome:
    """What an erasure did."""

    inventory: Inventory | None
    """What there was; None if an earlier attempt had finished all but its own state."""
    receipt: str | None
    """URI of the signed receipt; None if there was nothing to erase."""


def plan(config: PlanConfig) -> Inventory:
    """List what :func:`erase` would remove, without changing anything."""
    scope = Scope(open_store(config.store).uri, config.customer, config.subject)
    return state.read_inventory(scope.home) or take(
        scope, _tracker(config), _outside(scope, config), requests=config.requests
    )


def erase(config: EraseConfig) -> Outcome:
    """Erase, check that nothing is left, and write the signed receipt. The same call again completes a killed one.

    Raises:
        ConfigError: an id that is not valid, no signing key, or shared data sets hold photos and no take-down list is
            named.
        BusyError: jobs still work for the customer, or another erasure of it runs.
        LookalikeError: something is left that cannot be removed from here; the message says what and how.
    """
    scope = Scope(open_store(config.store).uri, config.customer, config.subject)
    key = signing_key()
    if key is None:
        fix = "set it to the output of `openssl genpkey -algorithm ed25519`, which you keep"
        raise ConfigError(f"{SIGNING_KEY} is not set, so the receipt cannot be signed", fix=fix)
    if config.webhook is not None:
        check_webhook(config.webhook, config.customer)
    tracker, outside = _tracker(config), _outside(scope, config)
    if not scope.home.exists(MARKER) and not _is_there(scope, tracker, outside, config.requests):
        _remove_folders(scope)
        return Outcome(None, None)
    receipts = open_store(config.receipts) if config.receipts else scope.root.child(_RECEIPTS)
    if receipts.prefix_in(scope.home) is not None:
        raise ConfigError("the receipts lie in what is erased", value=receipts.uri, fix="name another place")
    try:
        return _erase(config, scope, key, receipts)
    except ConfigError:
        if scope.home.exists(MARKER) and state.read_inventory(scope.home) is None:
            _forget(scope)  # nothing was removed, and what the user has to correct may take long
        raise


def _erase(config: EraseConfig, scope: Scope, key: Ed25519PrivateKey, receipts: Store) -> Outcome:
    tracker, outside = _tracker(config), _outside(scope, config)
    marker = state.begin(scope)
    inventory = state.read_inventory(scope.home)
    if not receipts.exists(receipt.key_of(marker.erasure)):
        with hold(scope.home.child(state.LEASE)) as lease:
            stop.wait_until_stopped(scope.home, config.wait_s)
            if inventory is None:
                inventory = take(scope, tracker, outside, state.photos_key(marker), config.requests)
                shared.check(inventory, config.take_down)
                lease.check()
                state.write_inventory(scope.home, inventory)
            job = _Erasure(config, scope, inventory, tracker, outside)
            job.remove()
            checked = job.check()
            lease.check()
            document = receipt.render(scope, marker, inventory, checked, shared.count(inventory, config.take_down))
            _write(receipts, marker.erasure, document, key)
    purge(scope.home, keep=f"{FOLDER}/")  # what a process that slept until now has written
    written = receipts.uri_of(receipt.key_of(marker.erasure))
    if config.webhook is not None:
        _tell(config, config.webhook, scope, marker, written)
    _forget(scope)
    return Outcome(inventory, written)


def _tell(config: EraseConfig, webhook: str, scope: Scope, marker: state.Marker, written: str) -> None:
    """Deliver the event ``erased``, whose records are part of the erasure's own state."""
    place = scope.home.child(FOLDER).child("webhook")
    EventLog(place, marker.erasure).append(
        "erased", {"customer": config.customer, "subject": config.subject, "receipt": written}
    )
    log.info("erased, with the receipt %s; the webhook is delivered", written)
    deliver_all(Deliverer(place, webhook, config.customer))


@dataclass
class _Erasure:
    config: EraseConfig
    scope: Scope
    inventory: Inventory
    tracker: TrackedErasure | None
    outside: Outside

    def remove(self) -> None:
        """Remove everything that the inventory lists, and what came to be below the prefix since."""
        home = self.scope.home
        shared.take_down(self.inventory, home, self.config.take_down)
        with _step("objects below the prefix"):
            purge(home, keep=f"{FOLDER}/", check=_progress("entries removed"))
        if self.config.requests:
            with _step("requests of fleets"):
                fleets.remove(self.config.requests, self.scope)
        outputs = [output for output in self.inventory.outputs if self.outside.is_ours(output)]
        for output in outputs:
            with _step(f"{output.kind} elsewhere"):
                purge(open_store(output.uri))
        if self.tracker is not None:
            with _step("entries in MLflow"):
                self.tracker.erase(self.inventory.tracked)
        with _step("caches"):
            caches.clean_nodes([home.uri, *(output.uri for output in outputs)])

    def check(self) -> dict[str, Any]:
        """Search for anything that is left; returns what was searched. Raises LookalikeError if something is."""
        home = self.scope.home
        for _ in range(_ATTEMPTS):
            late = purge(home, keep=f"{FOLDER}/")
            if not late:
                break
            log.warning("%d objects were written while the erasure ran, and are removed too", late)
        found = (entry for page in entries(home) for entry in page if entry.kind != "folder")
        left = [home.uri_of(entry.key) for entry in found if not _is_state(entry.key)]
        outputs = [output.uri for output in self.inventory.outputs if self.outside.is_ours(output)]
        left += [uri for uri in outputs if any(entries(open_store(uri)))]
        nodes, cached = caches.clean_nodes([home.uri, *outputs])
        left += cached + shared.missing(self.inventory, home, self.config.take_down)
        again = self.outside.search(b"", None)
        left += [output.uri for output in again.outputs]
        left += fleets.left(self.config.requests, self.scope)
        if self.tracker is not None:
            hashes = shared.some_photos(self.inventory, home)
            texts, pattern = self.scope.texts + hashes, shared.joined(self.scope.pattern, hashes)
            left += self.tracker.left(self.inventory.tracked, texts, pattern)
        if left:
            raise LookalikeError(
                f"{len(left)} things are left: {'; '.join(left[:_SHOWN])}",
                value=home.uri,
                fix=self._fix(),
            )
        mlflow = "none" if self.tracker is None else "server" if self.config_uri.startswith("http") else "database"
        return {"found": 0, "nodes": nodes, "mlflow": mlflow, "places": len(self.outside.places)}

    @property
    def config_uri(self) -> str:
        """The tracking URI."""
        return tracking_uri(self.config.tracking)

    def _fix(self) -> str:
        steps = self.tracker.steps(self.inventory.tracked) if self.tracker else []
        again = "then run the same command again, which checks and signs the receipt"
        return "; ".join([*steps, again]) if steps else f"remove them, {again}"


def _is_there(scope: Scope, tracker: TrackedErasure | None, outside: Outside, requests: Sequence[str]) -> bool:
    """Whether there is anything to erase."""
    if any(entry.kind != "folder" for page in entries(scope.home) for entry in page):
        return True
    if tracker is not None and not tracker.find().is_empty:
        return True
    return bool(outside.search(b"", None).outputs or fleets.count(requests, scope))


def _tracker(config: PlanConfig) -> TrackedErasure | None:
    address = tracking_uri(config.tracking)
    if address.startswith("jsonl:"):
        what, fix = "runs in JSON lines cannot be erased by this job", "remove the customer's folder there"
        raise ConfigError(what, value=address, fix=f"{fix}, and pass --tracking none:")
    return None if address.startswith("none:") else TrackedErasure(address, config.customer, config.subject)


def _outside(scope: Scope, config: PlanConfig) -> Outside:
    if config.take_down is not None:
        locate_object(config.take_down)  # raises if this cannot be the location of an object
    places = tuple(open_store(uri).uri for uri in config.search) or (scope.store,)
    return Outside(scope, places, config.take_down)


def _write(receipts: Store, erasure: str, document: bytes, key: Ed25519PrivateKey) -> None:
    receipt.write(receipts, erasure, document, key)
    log.info("the receipt is %s", receipts.uri_of(receipt.key_of(erasure)))


def _forget(scope: Scope) -> None:
    """Remove the erasure's own state, and nothing else; the marker last, so that the same command completes a kill."""
    own = scope.home.child(FOLDER)
    purge(own, keep=MARKER.removeprefix(f"{FOLDER}/"))
    purge(own)
    _remove_folders(scope)


def _remove_folders(scope: Scope) -> None:
    """Remove empty local folders, whose names are ids."""
    for home in (scope.home, scope.customer_home):
        remove_if_empty(home)


def _is_state(key: str) -> bool:
    return f"{key}/".startswith(f"{FOLDER}/")


def _progress(noun: str) -> Any:
    def show(removed: int) -> None:
        if removed % 100_000 < 1000:
            log.info("%d %s", removed, noun)

    return show


@contextmanager
def _step(what: str) -> Iterator[None]:
    log.info("removing %s", what)
    yield
