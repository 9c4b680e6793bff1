"""Names of customers, subjects and models, and what belongs to a customer.

Names are checked once, before they become part of a path or query. A personal model's bundle and promotion log lie
below its customer's prefix, ``customers/ID``. A bundle that training made for a customer names its owner too, inside
its identity. So no bundle of one customer becomes the champion of another, and none becomes a base model, which all
customers load.
"""

import re
from collections.abc import Mapping
from typing import Any

from lookalike.bundles.manifest import MANIFEST, parse_manifest
from lookalike.errors import ConfigError, InputError
from lookalike.storage import Store, open_store
from lookalike.storage.erasing import CUSTOMERS as CUSTOMERS
from lookalike.storage.erasing import IDENTIFIER, prefixes_of
from lookalike.storage.local import LocalStore

CHAMPION = "champion"
SEPARATOR = "--"
_MODEL = re.compile(rf"(?:{IDENTIFIER.pattern}){SEPARATOR}(?:{IDENTIFIER.pattern})")


def validate_identifier(value: str, what: str = "id") -> str:
    """Return ``value`` if it can name a customer, a subject or a base model; ``what`` names it in the error.

    Lower-case letters, digits, ``_`` and single ``-`` inside, 63 characters at most. So it is one segment of a path,
    never ``..``; two ids never differ by their case alone; and ``CUSTOMER--SUBJECT`` splits in one way only.
    """
    if not isinstance(value, str) or not IDENTIFIER.fullmatch(value):
        raise ConfigError(
            f"not a valid {what}",
            value=value,
            fix="use 1 to 63 lower-case letters, digits, '_' and single '-', starting with a letter or digit",
        )
    return value


def personal_model_name(customer: str, subject: str) -> str:
    """The registered model of a customer's subject, ``CUSTOMER--SUBJECT`` (MLflow refuses ``/`` and ``:``)."""
    return f"{validate_identifier(customer, 'customer id')}{SEPARATOR}{validate_identifier(subject, 'subject id')}"


def validate_model_name(name: str) -> str:
    """Return ``name`` if it is a base model's (an identifier) or a personal one's (``CUSTOMER--SUBJECT``)."""
    for part in name.split(SEPARATOR, 1):
        validate_identifier(part, f"model name {name!r}: part")
    return name


def customer_prefix(uri: str) -> str | None:
    """The first prefix in ``uri`` that is a customer's, ``…/customers/CUSTOMER``; None if it lies below none."""
    places = prefixes_of(open_store(uri))
    return places[0].uri if places else None


def owner_of(bundle_uri: str) -> str | None:
    """The model that a personal bundle was trained as, by its manifest; None for a base. Raises InputError for none."""
    store = open_store(bundle_uri)
    owner = parse_manifest(store.read(MANIFEST), store.uri_of(MANIFEST)).get("owner")
    return None if owner is None else str(owner)


def check_one_customer(places: Mapping[str, str | None]) -> None:
    """Check that everything that a job reads and writes belongs to one customer at most.

    Args:
        places: URIs, names of personal models, or ``models:/NAME…``, by what they are; None passes. What lies outside
            of all customers' prefixes belongs to nobody, and a base model to all. Links of a local folder are resolved.

    Raises:
        ConfigError: two of them belong to different customers.
    """
    owners = {what: owner for what, place in places.items() if place and (owner := _customer_of(place))}
    first = next(iter(owners), "")
    for what, owner in owners.items():
        if owner != owners[first]:
            raise ConfigError(
                f"{what} belongs to the customer {owner!r}, and {first} to {owners[first]!r}",
                value=places[what],
                fix="name what belongs to one customer, or to none",
            )


def _customer_of(place: str) -> str | None:
    """The customer that a URI or a model belongs to."""
    model = place.removeprefix("models:/")
    if model != place or _MODEL.fullmatch(place):
        return model.partition(SEPARATOR)[0] if SEPARATOR in model else None
    store = open_store(place)
    real = LocalStore(store.root.resolve()) if isinstance(store, LocalStore) else store
    inside = [prefixes[0].name for prefixes in (prefixes_of(real), prefixes_of(store)) if prefixes]
    return inside[0] if inside else None


def check_ownership(model: str, bundle_uri: str, manifest: Mapping[str, Any], log_uri: str) -> None:
    """Check that the bundle with this manifest may be a version of ``model``, and that the place of its log is valid.

    Raises:
        InputError: the bundle belongs to another customer or to none, or the log lies elsewhere.
    """
    owner = manifest.get("owner")
    customer, separator, subject = model.partition(SEPARATOR)
    if not separator:
        if owner is not None or (manifest["base"] is not None and customer_prefix(bundle_uri) is not None):
            raise InputError(
                f"the bundle belongs to {owner or 'a customer'}, and {model} is a model for all customers",
                value=bundle_uri,
                fix="promote it as CUSTOMER--SUBJECT, or name the bundle of a base run",
            )
        return
    if owner not in (None, model):
        raise InputError(
            f"the bundle belongs to {owner}, not to {model}",
            value=bundle_uri,
            fix=f"promote it as {owner}, or name a bundle of {model}",
        )
    prefix = customer_prefix(bundle_uri)
    if prefix is None or prefix.rpartition("/")[2] != customer or _leaves(open_store(bundle_uri), open_store(prefix)):
        raise InputError(
            f"the bundle of {model} does not lie below {CUSTOMERS}/{customer}/",
            value=bundle_uri,
            fix=f"copy it below …/{CUSTOMERS}/{customer}/{subject}/ and name its place with --bundle",
        )
    log = open_store(log_uri)
    if customer_prefix(log.uri) != prefix or _leaves(log, open_store(prefix)):
        raise InputError(
            f"the promotion log of {model} does not lie below its customer's prefix, {prefix}",
            value=log.uri,
            fix=f"name a place below it with --log {prefix}/{subject}/promotion-log; if the model has a log already,"
            " add --begin-anew REASON",
        )


def _leaves(store: Store, prefix: Store) -> bool:
    """Whether a symbolic link leads from ``store``, which is written below ``prefix``, out of it."""
    if not isinstance(store, LocalStore) or not isinstance(prefix, LocalStore):
        return False
    return not store.root.resolve().is_relative_to(prefix.root.resolve())
