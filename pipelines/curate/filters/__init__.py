"""The steps of curation, one file each.

To add one: a frozen dataclass with ``scope`` and ``drop`` in a file of its own, a field in :class:`FiltersConfig`, and
its place in :meth:`FiltersConfig.steps`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lookalike.errors import ConfigError
from pipelines.curate.filters.aspect import Aspect
from pipelines.curate.filters.base import Filter, Photos, Scope
from pipelines.curate.filters.blurry import Blurry
from pipelines.curate.filters.exact_duplicate import ExactDuplicate
from pipelines.curate.filters.flat import Flat
from pipelines.curate.filters.licence import Licence
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.off_subject import OffSubject
from pipelines.curate.filters.single_photo import SinglePhoto
from pipelines.curate.filters.taken_down import TakenDown
from pipelines.curate.filters.too_small import TooSmall
from pipelines.curate.filters.truncated_shard import TruncatedShard
from pipelines.curate.filters.undecodable import Undecodable
from pipelines.curate.filters.unlabelled import Unlabelled

__all__ = ["Filter", "FiltersConfig", "Photos", "Scope"]

OPTIONAL = ("too_small", "aspect", "flat", "blurry", "exact_duplicate", "near_duplicate", "off_subject")


@dataclass(frozen=True)
class FiltersConfig:
    """Thresholds of the filters. The first filter that drops an image names the reason."""

    taken_down: TakenDown = field(default_factory=TakenDown)
    """Removed on demand."""
    licence: Licence = field(default_factory=Licence)
    """Not allowed to be used."""
    too_small: TooSmall = field(default_factory=TooSmall)
    """Too few pixels."""
    aspect: Aspect = field(default_factory=Aspect)
    """Too long and thin."""
    flat: Flat = field(default_factory=Flat)
    """One colour."""
    blurry: Blurry = field(default_factory=Blurry)
    """No sharp edge."""
    near_duplicate: NearDuplicate = field(default_factory=NearDuplicate)
    """A copy in another size or quality."""
    off_subject: OffSubject = field(default_factory=OffSubject)
    """Somebody else."""
    no_pair: NoPair = field(default_factory=NoPair)
    """No partner within the similarity band."""
    skip: list[str] = field(default_factory=list)
    """Filters to switch off, for example ``[blurry, near_duplicate]``."""

    def __post_init__(self) -> None:
        for name in self.skip:
            if name not in OPTIONAL:
                raise ConfigError("no filter that can be skipped", value=name, fix=f"choose from {list(OPTIONAL)}")

    def steps(self, *scopes: Scope) -> Iterator[tuple[str, Filter]]:
        """(reason, filter) of each filter that is not skipped, in the order of the funnel; all scopes, or these."""
        everything: dict[str, Filter] = {
            "taken_down": self.taken_down,
            "truncated_shard": TruncatedShard(),
            "undecodable": Undecodable(),
            "unlabelled": Unlabelled(),
            "licence": self.licence,
            "too_small": self.too_small,
            "aspect": self.aspect,
            "flat": self.flat,
            "blurry": self.blurry,
            "exact_duplicate": ExactDuplicate(),
            "near_duplicate": self.near_duplicate,
            "off_subject": self.off_subject,
            "single_photo": SinglePhoto(),
            "no_pair": self.no_pair,
        }
        for name, step in everything.items():
            if name not in self.skip and (not scopes or step.scope in scopes):
                yield name, step
