"""The filters of curation, one file each, and the list of them.

To add one, see "A new filter" in ``pipelines/curate/README.md``.
"""

from collections.abc import Iterator
from dataclasses import field
from typing import ClassVar

from lookalike.errors import ConfigError
from lookalike.values import configuration
from pipelines.curate.filters.aesthetic import Aesthetic
from pipelines.curate.filters.aspect import Aspect
from pipelines.curate.filters.base import SCORE, Filter, Photos, Scope, ScoreFilter, with_scores
from pipelines.curate.filters.blurry import Blurry
from pipelines.curate.filters.exact_duplicate import ExactDuplicate
from pipelines.curate.filters.flat import Flat
from pipelines.curate.filters.held_out import HeldOut
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

__all__ = ["SCORE", "Filter", "FiltersConfig", "Photos", "Scope", "ScoreFilter", "with_scores"]


@configuration("filters")
class FiltersConfig:
    """Thresholds of the filters. The first filter that drops an image is the reason.

    This class is the list of filters: each attribute is a filter, called by its reason, in the order of the funnel. A
    class variable is a filter without settings.
    """

    taken_down: TakenDown = field(default_factory=TakenDown)
    """Images that were removed on request."""
    truncated_shard: ClassVar = TruncatedShard()
    undecodable: ClassVar = Undecodable()
    unlabelled: ClassVar = Unlabelled()
    licence: Licence = field(default_factory=Licence)
    """Images whose licence or consent does not allow their use."""
    too_small: TooSmall = field(default_factory=TooSmall)
    """Images with too few pixels."""
    aspect: Aspect = field(default_factory=Aspect)
    """Images that are too long and thin."""
    flat: Flat = field(default_factory=Flat)
    """Images of one colour."""
    blurry: Blurry = field(default_factory=Blurry)
    """Images without a sharp edge."""
    exact_duplicate: ClassVar = ExactDuplicate()
    subject_area: SubjectArea = field(default_factory=SubjectArea)
    """Images in which the subject is too small, by its mask."""
    not_safe: NotSafe | None = None
    """Images that are not safe for work, by a model (16 ms an image); null asks no model."""
    aesthetic: Aesthetic | None = None
    """Images with a low aesthetic score, by a model; null asks no model."""
    overlaid_text: OverlaidText | None = None
    """Images with watermarks and captions, by text recognition (half a second an image); null asks no model."""
    large_subject: LargeSubject = field(default_factory=LargeSubject)
    """Photos of one subject beyond the number that is compared."""
    near_duplicate: NearDuplicate = field(default_factory=NearDuplicate)
    """Copies of a photo in another size or quality."""
    off_subject: OffSubject = field(default_factory=OffSubject)
    """Photos of another subject."""
    single_photo: ClassVar = SinglePhoto()
    no_pair: NoPair = field(default_factory=NoPair)
    """Photos without a partner within the similarity band."""
    held_out: HeldOut | None = None
    """Photos that are held out of training; null holds none out."""
    skip: list[str] = field(default_factory=list)
    """Filters to switch off, for example ``[blurry, near_duplicate]``."""

    def __post_init__(self) -> None:
        optional = [name for name, step in self._all() if "can_skip" in step.traits]
        for name in self.skip:
            if name not in optional:
                raise ConfigError(
                    "filters.skip names a filter that cannot be skipped", value=name, fix=f"choose from {optional}"
                )

    def steps(self, *scopes: Scope) -> Iterator[tuple[str, Filter]]:
        """Yield (reason, filter) of each filter that is on, in the order of the funnel; all scopes, or these."""
        for name, step in self._all():
            if name not in self.skip and (not scopes or step.scope in scopes):
                yield name, step

    def scored(self) -> Iterator[tuple[str, ScoreFilter]]:
        """Yield (reason, filter) of each filter that sees a score, in the order of the funnel."""
        for name, step in self.steps("score"):
            if isinstance(step, ScoreFilter):
                yield name, step

    def has(self, kind: type[Filter]) -> bool:
        """Return whether a filter of this class is on."""
        return any(isinstance(step, kind) for _, step in self.steps())

    def _all(self) -> Iterator[tuple[str, Filter]]:
        for name in FiltersConfig.__annotations__:
            step = getattr(self, name)
            if name != "skip" and step is not None:
                yield name, step
