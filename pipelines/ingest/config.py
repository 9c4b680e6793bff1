"""What `jobs/ingest.py` can be told."""

from dataclasses import dataclass, field

from lookalike.data.text import MAX_TEXT_BYTES
from lookalike.errors import ConfigError
from lookalike.values import check_values

SAMPLE = "sample"
MORE_DEFECTS = (
    "wrong_licence",
    "taken_down",
    "overlaid_text",
)  # of the sample world; no default of curation drops them
_DEFECTS_NEED = 4  # subjects: one for the cut shard, and a stranger to misfile


@dataclass(frozen=True)
class SampleWorldConfig:
    """The rendered sample world."""

    subjects: int = 160
    """How many subjects there are."""
    views: int = 6
    """Photos of each subject, evenly about it."""
    seed: int = 0
    """Another seed (0 to 99) is another world: no subject of one appears in the other."""
    first_subject: int = 0
    """Number of the first subject; worlds of one seed that do not overlap are disjoint."""
    shapes: list[str] = field(default_factory=list)
    """Only these shapes, e.g. '[duck]'; none means all."""
    size_px: int = 256
    """Width and height of a photo."""
    bare_captions: float = 0.0
    """Share of captions that name class, place and view alone: what a subject looks like is then seen, not told."""
    defects: bool = True
    """Plant spoilt, duplicate and misfiled photos and a truncated shard; `_truth.json` names each."""
    defects_of_each: int | None = None
    """Planted photos of each kind; null: one for 40 subjects, and 3 at least."""
    more_defects: list[str] = field(default_factory=list)
    """Further kinds, which a curation finds only if told what to look for: wrong_licence, taken_down, overlaid_text."""

    def __post_init__(self) -> None:
        check_values(
            self,
            at="sample.",
            subjects=(1, 10_000_000),
            views=(1, 1_000),
            seed=(0, 99),
            first_subject=(0, 1_000_000_000),
            size_px=(32, 1024),
            bare_captions=(0, 1),
            defects_of_each=(1, 100_000),
        )
        unknown = sorted(set(self.more_defects) - set(MORE_DEFECTS))
        if unknown or (self.more_defects and not self.defects):
            raise ConfigError(
                "sample.more_defects cannot be planted",
                value=unknown or self.more_defects,
                fix=f"choose from {list(MORE_DEFECTS)}, with defects: true",
            )
        if self.defects and self.subjects < _DEFECTS_NEED:
            raise ConfigError(
                f"defects need {_DEFECTS_NEED} subjects or more",
                value=self.subjects,
                fix="raise sample.subjects or set --sample.defects false",
            )


@dataclass(frozen=True)
class IngestConfig:
    """Where the photographs come from, and where the raw shards go."""

    source: str
    """A folder (or URI) with `<subject>/<nn>.jpg`, or `sample` for the rendered sample world."""
    raw: str
    """URI of the prefix that gets the raw shards."""
    subjects: list[str] = field(default_factory=list)
    """Only these subjects (folder names); none means all."""
    exclude_subjects: list[str] = field(default_factory=list)
    """Not these subjects."""
    licence: str = "unknown"
    """Licence of the photographs, where a sidecar names none."""
    max_file_mib: int = 256
    """A photo or mask that is larger is left out, with its reason."""
    max_text_mib: int = 16
    """A sidecar or list that is larger is left out, with its reason. At most 16."""
    shard_mib: int = 64
    """A raw shard holds at most about this much; one sample is never split."""
    photos: str | None = None
    """With `--source sample`: also write plain `<subject>/<nn>.jpg` folders here, like a user's own."""
    sample: SampleWorldConfig = field(default_factory=SampleWorldConfig)
    """The sample world; used with `--source sample`."""

    def __post_init__(self) -> None:
        check_values(self, max_file_mib=(1, 65_536), max_text_mib=(1, MAX_TEXT_BYTES >> 20), shard_mib=(1, 65_536))
        if self.source != SAMPLE and self.photos:
            raise ConfigError("photos are written of the sample world only", value=self.photos, fix="drop --photos")
