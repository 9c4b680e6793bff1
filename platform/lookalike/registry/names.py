"""Names of customers, subjects and models, checked once, before they become part of a path or query."""

import re

from lookalike.errors import ConfigError

CHAMPION = "champion"
SEPARATOR = "--"
_IDENTIFIER = re.compile(r"[a-z0-9](?:[a-z0-9_]|-(?=[a-z0-9_])){0,62}")


def validate_identifier(value: str, what: str = "id") -> str:
    """Return ``value`` if it can name a customer, a subject or a base model; ``what`` names it in the error.

    Lower-case letters, digits, ``_`` and single ``-`` inside, 63 characters at most. So it is one segment of a path,
    never ``..``; two ids never differ by their case alone; and ``CUSTOMER--SUBJECT`` splits in one way only.
    """
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
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
