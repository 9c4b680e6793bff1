"""The steps of curation, one file each.

To add one: a frozen dataclass with ``scope`` and ``drop`` in a file of its own, a field in :class:`FiltersConfig`, and
its place in :meth:`FiltersConfig.steps`. One that asks a model has the scope ``score``, ``scorer`` and ``asks`` too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lookalike.errors import ConfigError
from pipelines.curate.filters.aesthetic import Aesthetic
from pipelines.curate.filters.aspect import Aspect
from pipelines.curate.filters.base import SCORE, Filter, Photos, Scope, ScoreFilter
from pipelines.curate.filters.blurry import Blurry
from pipelines.curate.filters.exact_duplicate import ExactDuplicate
from pipelines.curate.filters.flat import Flat
from pipelines.curate.filters.large_subject import LargeSubject
from pipelines.curate.filters.licence import Licence
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.not_safe import NotSafe
from pipelines.curate.filters.off_subject import OffSubject
from pipelines.curate.filters.overlaid_text import OverlaidText
from pipelines.curate.filters.single_photo import SinglePhoto
from pipelines.curate.filters.subject_area import SubjectArea
from pipelines.curate.filters.taken_down import TakenDown
from pipelines.curate.filters.too_small import TooSmall
from pipelines.curate.filters.truncated_shard import TruncatedShard
from pipelines.curate.filters.undecodable import Undecodable
from pipelines.curate.filters.unlabelled import Unlabelled

__all__ = ["BOUND", "SCORE", "Filter", "FiltersConfig", "Photos", "Scope", "ScoreFilter"]

BOUND = "large_subject"
"""Reason of photos beyond the number that is compared of one subject."""

OPTIONAL = (
    *("too_small", "aspect", "flat", "blurry", "exact_duplicate", "subject_area", "near_duplicate", "off_subject"),
)


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
    subject_area: SubjectArea = field(default_factory=SubjectArea)
    """Too little of the subject, by its mask."""
    not_safe: NotSafe | None = None
    """Not safe for work, as a model sees it (16 ms an image); null asks no model."""
    aesthetic: Aesthetic | None = None
    """Not good to look at, as a model sees it; null asks no model."""
    overlaid_text: OverlaidText | None = None
    """Watermarks and captions in the picture, by text recognition (half a second an image); null asks no model."""
    large_subject: LargeSubject = field(default_factory=LargeSubject)
    """More photos of one subject than are compared."""
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
        everything: dict[str, Filter | None] = {
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
            "subject_area": self.subject_area,
            "not_safe": self.not_safe,
            "aesthetic": self.aesthetic,
            "overlaid_text": self.overlaid_text,
            BOUND: self.large_subject,
            "near_duplicate": self.near_duplicate,
            "off_subject": self.off_subject,
            "single_photo": SinglePhoto(),
            "no_pair": self.no_pair,
        }
        for name, step in everything.items():
            if step is not None and name not in self.skip and (not scopes or step.scope in scopes):
                yield name, step

    def scored(self) -> Iterator[tuple[str, ScoreFilter]]:
        """(reason, filter) of those that ask a model, in the order of the funnel."""
        for name, step in self.steps("score"):
            if isinstance(step, ScoreFilter):
                yield name, step
