"""What a source of photographs gives to ingest: a plan of shards, each of which can be made alone, anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Shard(Protocol):
    """One raw shard that is yet to be written. Picklable; equal plans write equal bytes."""

    @property
    def name(self) -> str:
        """Key below the raw prefix, such as ``shard-000000.tar``."""

    @property
    def images(self) -> int:
        """How many images it holds."""

    def write(self, path: Path) -> None:
        """Write the tar to ``path``."""


@dataclass(frozen=True)
class Plan:
    """Everything that a source is going to write."""

    shards: Sequence[Shard]
    """In the order of their names."""
    subjects: int
    """How many subjects they hold."""
    identity: str
    """Hash of the input: another one under the same raw prefix is a conflict."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Files that are left out, and why."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """JSON documents that are written beside the shards, by key."""


def shard_name(index: int) -> str:
    """The key of shard ``index``."""
    return f"shard-{index:06d}.tar"
