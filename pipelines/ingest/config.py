"""The configuration of `jobs/ingest.py`."""

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le

from lookalike.data.text import MAX_TEXT_BYTES
from lookalike.errors import ConfigError
from lookalike.values import Count, Mib, NonNegative, Share, configuration

SAMPLE = "sample"
# Defects of the sample world that curation drops only if it is configured to.
MORE_DEFECTS = ("wrong_licence", "taken_down", "overlaid_text")
_DEFECTS_NEED = 4  # subjects: one is in the truncated shard, and misfiled photos need another subject


@configuration("sample")
class SampleWorldConfig:
    """The sample world, whose photos are rendered."""

    subjects: Annotated[Count, Le(10_000_000)] = 160
    """Number of subjects."""
    views: Annotated[Count, Le(1_000)] = 6
    """Photos of each subject, at evenly spaced angles."""
    seed: Annotated[NonNegative, Le(99)] = 0
    """Seed of the world, 0 to 99. Worlds of different seeds have no subject in common."""
    first_subject: Annotated[NonNegative, Le(1_000_000_000)] = 0
    """Number of the first subject; ranges that do not overlap give disjoint worlds."""
    shapes: list[str] = field(default_factory=list)
    """Use only these shapes, for example '[duck]'; an empty list means all."""
    size_px: Annotated[int, Ge(32), Le(1024)] = 256
    """Width and height of a photo."""
    bare_captions: Share = 0.0
    """Share of captions (0 to 1) that name only class, place and view, and leave out colours and pattern."""
    defects: bool = True
    """Plant damaged, duplicate and misfiled photos and a truncated shard; `_truth.json` lists them."""
    defects_of_each: Annotated[Count, Le(100_000)] | None = None
    """Planted photos of each kind; null: one for every 40 subjects, and at least 3."""
    more_defects: list[str] = field(default_factory=list)
    """Further kinds, which curation finds only if configured to: wrong_licence, taken_down, overlaid_text."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.more_defects) - set(MORE_DEFECTS))
        if unknown or (self.more_defects and not self.defects):
            raise ConfigError(
                "sample.more_defects cannot be planted",
                value=unknown or self.more_defects,
                fix=f"choose from {list(MORE_DEFECTS)}, with defects: true",
            )
        if self.defects and self.subjects < _DEFECTS_NEED:
            raise ConfigError(
                f"sample.defects needs at least {_DEFECTS_NEED} subjects",
                value=self.subjects,
                fix="raise sample.subjects, or set --sample.defects false",
            )


@configuration()
class IngestConfig:
    """Location of the photos and of the raw shards."""

    source: str
    """A folder (or URI) with `<subject>/<nn>.jpg`, or `sample` for the rendered sample world."""
    raw: str
    """URI of the prefix for the raw shards."""
    subjects: list[str] = field(default_factory=list)
    """Use only these subjects (folder names); an empty list means all."""
    exclude_subjects: list[str] = field(default_factory=list)
    """Leave these subjects out."""
    licence: str = "unknown"
    """Licence of photos whose sidecars name none."""
    max_file_mib: Mib = 256
    """Largest size of a photo or mask, in MiB; larger ones are left out with a reason."""
    max_text_mib: Annotated[Count, Le(MAX_TEXT_BYTES >> 20)] = 16
    """Largest size of a sidecar or list, in MiB, at most 16; larger ones are left out with a reason."""
    shard_mib: Mib = 64
    """Approximate largest size of a raw shard, in MiB. A sample is never split."""
    photos: str | None = None
    """With `--source sample`: URI that also gets the photos as plain files, `<subject>/<nn>.jpg`."""
    sample: SampleWorldConfig = field(default_factory=SampleWorldConfig)
    """Settings of the sample world, for `--source sample`."""

    def __post_init__(self) -> None:
        if self.source != SAMPLE and self.photos:
            raise ConfigError("photos needs --source sample", value=self.photos, fix="leave out --photos")
