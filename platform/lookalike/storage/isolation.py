"""Check at a job's start that its credentials reach one customer's prefix, and nothing beside it."""

import uuid
from collections.abc import Callable

from lookalike.errors import ConfigError, InputError, RefusedError
from lookalike.storage.base import Store

_FIX = (
    "give the job credentials whose policy allows s3:GetObject, s3:PutObject, s3:DeleteObject on {allowed}* alone, and "
    "s3:ListBucket for that prefix (SECURITY.md)"
)


def check_isolation(root: Store, home: Store) -> None:
    """Raise ConfigError unless this process may use ``home``, which is below ``root``, and nothing beside it there.

    It tries: to write, read, list and remove an object of its own in ``home``; then to write, to read and to list
    beside it and above it. A neighbour is tried whose name begins as ``home``'s, since a policy without a slash at its
    end covers it. What a trial has written is removed.
    """
    if not root.uri.startswith("s3://"):
        raise ConfigError(
            "the isolation of a customer can be checked on S3 only", value=root.uri, fix="use S3, or drop --isolated"
        )
    key = f".isolation-{uuid.uuid4().hex}"
    home.write(key, b"")
    home.read(key)
    list(home.list(key))
    home.delete(key)
    fix = _FIX.format(allowed=f"{home.uri}/")
    neighbour = home.parent.child(f"{home.name}-isolation")
    for place in (neighbour, home.parent, root):
        for verb, trial in _trials(place, key).items():
            if _is_possible(trial):
                raise ConfigError(f"these credentials may {verb} outside of {home.uri}", value=place.uri, fix=fix)


def _trials(place: Store, key: str) -> dict[str, Callable[[], object]]:
    def write() -> None:
        place.write(key, b"")
        place.delete(key)

    return {"write": write, "list": lambda: next(iter(place.list()), None), "read": lambda: place.read(key)}


def _is_possible(trial: Callable[[], object]) -> bool:
    """Whether the store lets it be done; an object that is not there was looked for, and so could be read."""
    try:
        trial()
    except RefusedError:
        return False
    except InputError:
        return True
    return True
