"""Check when a job starts that its credentials reach one customer's prefix and nothing else."""

import uuid
from collections.abc import Callable

from lookalike.errors import ConfigError, InputError, RefusedError
from lookalike.storage.base import Store

_FIX = (
    "use credentials whose policy allows s3:GetObject, s3:PutObject, s3:DeleteObject on {allowed}* only, and "
    "s3:ListBucket for that prefix (SECURITY.md)"
)


def check_isolation(root: Store, home: Store) -> None:
    """Raise ConfigError unless this process can use ``home``, which is below ``root``, and nothing else there.

    It writes, reads, lists and removes an object in ``home``. Then it tries to write, read and list in ``root``, in
    the parent of ``home``, and in a neighbour whose name begins with that of ``home``, since a policy without a slash
    at its end covers such a neighbour. Objects that a trial wrote are removed.
    """
    if not root.uri.startswith("s3://"):
        raise ConfigError(
            "isolation of a customer can be checked on S3 only", value=root.uri, fix="use S3, or drop --isolated"
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
                raise ConfigError(
                    f"the credentials of this job can {verb} outside of {home.uri}", value=place.uri, fix=fix
                )


def _trials(place: Store, key: str) -> dict[str, Callable[[], object]]:
    def write() -> None:
        place.write(key, b"")
        place.delete(key)

    return {"write": write, "list": lambda: next(iter(place.list()), None), "read": lambda: place.read(key)}


def _is_possible(trial: Callable[[], object]) -> bool:
    """Whether the store allows ``trial``; "no such object" means that reading is allowed."""
    try:
        trial()
    except RefusedError:
        return False
    except InputError:
        return True
    return True
