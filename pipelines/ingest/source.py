"""The interface of sources: a plan of shards, each of which any worker can write alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shard:
    """One raw shard to write."""

    name: str
    """Key below the raw prefix, such as ``shard-000000.tar``."""
    images: int
    """Number of photos in the shard."""
    write: Callable[[Path], None]
    """Picklable function that writes the tar to a path. Equal plans write equal bytes."""


@dataclass(frozen=True)
class Plan:
    """All that a source will write."""

    shards: Sequence[Shard]
    """The shards, in the order of their names."""
    subjects: int
    """Number of subjects in the shards."""
    identity: str
    """Hash of the input; a different input for the same raw prefix is a conflict."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Files that are left out, with the reason."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """JSON documents to write beside the shards, by key."""


def shard_name(index: int) -> str:
    """Return the key of shard ``index``."""
    return f"shard-{index:06d}.tar"
