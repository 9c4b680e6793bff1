"""The configuration of a curation."""

from dataclasses import dataclass, field

import regex

from lookalike.annotators.captioner import Captioner
from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.data.limits import Limits
from lookalike.errors import ConfigError
from lookalike.values import check_most, check_values
from pipelines.actors import ActorConfig
from pipelines.curate.captions import CaptionsConfig
from pipelines.curate.filters import FiltersConfig


@dataclass(frozen=True)
class PlanConfig:
    """Which images become which triplets. The similarity band of a pair is ``filters.no_pair``."""

    max_references: int = 2
    """A triplet has 1 to this many references."""
    max_triplets_per_target: int = 4
    """Each with another set of references."""
    max_triplets_per_subject: int = 24
    """So that no subject dominates."""
    validation_fraction: float = 0.15
    """Share of subjects that training never sees. A subject's side depends on its name and the seed only, so it does
    not change when others are added."""
    min_validation_subjects: int = 2
    """At least this many subjects are validation, if at least one is left for training."""
    rows_per_partition: int = 20_000
    """A task plans about this many images at once; a subject is never divided."""

    def __post_init__(self) -> None:
        check_values(self)
        check_most(
            self,
            max_references=64,
            max_triplets_per_target=10_000,
            max_triplets_per_subject=1_000_000,
            rows_per_partition=10_000_000,
        )
        for name in ("max_references", "max_triplets_per_target", "max_triplets_per_subject", "rows_per_partition"):
            if getattr(self, name) < 1:
                raise ConfigError(f"plan.{name} is below 1", value=getattr(self, name), fix="use 1 or more")
        if not 0 <= self.validation_fraction < 1 or self.min_validation_subjects < 0:
            raise ConfigError(
                "no such share of subjects",
                value=[self.validation_fraction, self.min_validation_subjects],
                fix="use plan.validation_fraction in [0, 1) and plan.min_validation_subjects >= 0",
            )


@dataclass(frozen=True)
class FoundConfig:
    """How subjects are found among photographs without a label: by their embeddings, across all shards."""

    min_similarity: float = 0.7
    """Cosine similarity from which on two photographs, and on average two groups of them, are of one subject. The
    default is for the default embedder; what each threshold finds and mistakes is in
    tests/bench/results/found-subjects.json."""
    neighbours: int = 16
    """Nearest photographs that each is compared with."""
    images_per_cell: int = 50_000
    """A task compares about this many; a subject that lies in two cells is found twice."""

    def __post_init__(self) -> None:
        check_values(self)
        check_most(self, neighbours=4_096, images_per_cell=10_000_000)
        if not 0 < self.min_similarity < 1:
            raise ConfigError("no such similarity", value=self.min_similarity, fix="use a value between 0 and 1")
        for name in ("neighbours", "images_per_cell"):
            if getattr(self, name) < 1:
                raise ConfigError(f"labels.found.{name} is below 1", value=getattr(self, name), fix="use 1 or more")


@dataclass(frozen=True)
class LabelsConfig:
    """Where a photograph's subject is read."""

    subject_field: str = "subject"
    """Key of ``key.json`` that names the subject."""
    subject_pattern: str | None = None
    """Where that is missing: a regular expression, searched for in the sample's key, whose first group is the subject,
    such as ``^(.+)-`` for ``cup-03``. null: such a photograph has no subject."""
    subject_pattern_s: float = 1.0
    """Seconds that a search may take in one key: some patterns take years for a name of 40 characters."""
    found: FoundConfig | None = None
    """Where neither names one: photographs that look alike are one subject. null: such photographs are dropped."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.subject_pattern_s <= 0:
            raise ConfigError(
                "labels.subject_pattern_s is not above 0", value=self.subject_pattern_s, fix="use a number above 0"
            )
        if self.subject_pattern is None:
            return
        try:
            groups = regex.compile(self.subject_pattern).groups
        except regex.error as error:
            raise ConfigError(
                f"labels.subject_pattern is not a valid regular expression: {error}",
                value=self.subject_pattern,
                fix="write one with a group, such as '^(.+)-[0-9]+$'",
            ) from None
        if groups == 0:
            raise ConfigError(
                "labels.subject_pattern has no group", value=self.subject_pattern, fix="put the subject in parentheses"
            )


@dataclass(frozen=True)
class ShardsConfig:
    """How the triplet shards are written."""

    image_size: int | None = 512
    """Images whose short side is larger (px) are scaled down to it and encoded again; null keeps every JPEG's bytes.
    Other formats than JPEG are always encoded again, so that members are called ``.jpg`` with reason."""
    buckets: list[tuple[int, int]] | None = None
    """Sizes (height, width) in px: each image is cropped to that of the nearest aspect and scaled to it, in the place
    of ``image_size``. null: images keep their aspect."""
    latents: str | None = None
    """URI of a bundle (such as a run's ``initial``) whose VAE encodes every image at the sizes of its preset, so that a
    training of that model need not. They become a member ``latents.safetensors``; null: none."""
    jpeg_quality: int = 95
    """Of what is encoded again, without chroma subsampling."""
    shard_mib: int = 256
    """A shard holds about this much, counted before images are scaled down."""

    def __post_init__(self) -> None:
        check_values(self)
        check_most(self, image_size=16_384, shard_mib=65_536)
        if self.image_size is not None and self.image_size < 16:
            raise ConfigError("shards.image_size is too small", value=self.image_size, fix="use 16 or more, or null")
        if self.buckets is not None and (not self.buckets or min(min(size) for size in self.buckets) < 16):
            raise ConfigError(
                "shards.buckets has no size, or one below 16 px", value=self.buckets, fix="name sizes, or null"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError("no such JPEG quality", value=self.jpeg_quality, fix="use 1 to 100")
        if self.shard_mib < 1:
            raise ConfigError("shards.shard_mib is below 1", value=self.shard_mib, fix="use 1 or more")


@dataclass(frozen=True)
class CurateConfig:
    """Where the raw shards are, where the snapshots go, and what a good image is."""

    raw: str | list[str]
    """URI of the prefix with the raw shards (``*.tar``, plain or compressed), a brace expression
    (``s3://bucket/raw/shard-{000000..000063}.tar``), or a list of either. What is named lies below one prefix."""
    dataset: str
    """URI of the prefix that gets the snapshots, and ``work/``, from which a killed run resumes."""
    embedder: str = "efficientnet-lite0-colour"
    """What similarity means: a packaged embedder, a folder or a Hub id (``facebook/dinov2-small@<revision>``). The
    defaults of the filters that look at similarity are calibrated to the default embedder. ``none`` embeds nothing:
    then those filters have to be switched off, and all photos of a subject that are left are pairs."""
    limits: Limits = field(default_factory=Limits)
    """How large files in raw shards may be."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """Where a photograph's subject is read."""
    captioner: Captioner | None = None
    """Describes the photographs that have no caption; null: they are called after their class."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """How long captions may be, and for which models."""
    seed: int = 0
    """Of the choices that are made by chance."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """What is dropped."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """What becomes a triplet."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """How triplets are written."""
    actors: ActorConfig = field(default_factory=ActorConfig)
    """Who indexes: each actor reads shards and holds the embedder. Changes no result."""

    def __post_init__(self) -> None:
        check_values(self)
        if self.embedder != NO_EMBEDDER:
            return
        if self.labels.found is not None:
            raise ConfigError("embedder 'none' finds no subjects", value="labels.found", fix="choose an embedder")
        needs = {"can_skip", "compares_embeddings"}
        blind = sorted(name for name, step in self.filters.steps() if needs.issubset(step.traits))
        if blind:
            raise ConfigError(
                "embedder 'none' tells no two images apart, which these filters need",
                value=blind,
                fix=f"set filters.skip to {sorted({*self.filters.skip, *blind})}, or choose an embedder",
            )
        band = self.filters.no_pair
        if not band.min_similarity <= 0 <= band.max_similarity:
            raise ConfigError(
                "embedder 'none' makes every similarity 0, which lies outside the band of filters.no_pair",
                value=[band.min_similarity, band.max_similarity],
                fix="set filters.no_pair.min_similarity to 0, or choose an embedder",
            )
