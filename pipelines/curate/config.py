"""The configuration of a curation run."""

from dataclasses import field
from typing import Annotated

import regex
from annotated_types import Ge, Gt, Le, Lt

from lookalike.annotators.captioner import Captioner
from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.data.limits import Limits
from lookalike.errors import ConfigError
from lookalike.values import Count, Fraction, Mib, NonNegative, Positive, Seed, configuration
from pipelines.actors import ActorConfig
from pipelines.curate.captions import CaptionsConfig
from pipelines.curate.filters import FiltersConfig


@configuration("plan")
class PlanConfig:
    """Which images become which triplets. The similarity band of a pair is ``filters.no_pair``."""

    max_references: Annotated[Count, Le(64)] = 2
    """A triplet has 1 to this many references."""
    max_triplets_per_target: Annotated[Count, Le(10_000)] = 4
    """Maximum number of triplets of one target photo; each has another set of references."""
    max_triplets_per_subject: Annotated[Count, Le(1_000_000)] = 24
    """Bounds the share of one subject in the training data."""
    validation_fraction: Fraction = 0.15
    """Share of subjects that training never sees. The split of a subject depends on its name and the seed only, so it
    does not change when subjects are added."""
    min_validation_subjects: NonNegative = 2
    """Minimum number of validation subjects, if at least one subject remains for training."""
    rows_per_partition: Annotated[Count, Le(10_000_000)] = 20_000
    """Approximate number of images that one task plans; a subject is never divided."""


@configuration("labels.found")
class FoundConfig:
    """How photos without a subject label are grouped into subjects, by their embeddings and across all raw shards."""

    min_similarity: Annotated[float, Gt(0), Lt(1)] = 0.7
    """Minimum cosine similarity of two photos, and minimum average similarity of two groups of photos, of one subject.
    The default is for the default embedder; tests/bench/results/found-subjects.json has the precision and recall of
    other values."""
    neighbours: Annotated[Count, Le(4_096)] = 16
    """Number of nearest photos that each photo is compared with."""
    images_per_cell: Annotated[Count, Le(10_000_000)] = 50_000
    """Approximate number of images that one task compares; a subject in two cells becomes two subjects."""


@configuration("labels")
class LabelsConfig:
    """Where the subject of a photo comes from."""

    subject_field: str = "subject"
    """Key of ``key.json`` that has the subject."""
    subject_pattern: str | None = None
    """Regular expression for samples without that field: it is searched for in the sample's key, and its first group is
    the subject, such as ``^(.+)-`` for ``cup-03``. null: such a photo has no subject."""
    subject_pattern_s: Positive = 1.0
    """Maximum seconds of a search in one key: some patterns take years for a key of 40 characters."""
    found: FoundConfig | None = None
    """Settings to group photos that still have no subject. null: such photos are dropped."""

    def __post_init__(self) -> None:
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
                "labels.subject_pattern has no group",
                value=self.subject_pattern,
                fix="put the part that is the subject in parentheses",
            )


@configuration("shards")
class ShardsConfig:
    """How images are stored."""

    image_size: Annotated[int, Ge(16), Le(16_384)] | None = 512
    """Short side in px: larger images are scaled down to it and encoded again; null keeps the bytes of each JPEG.
    Files of other formats are always encoded again as JPEG."""
    buckets: list[tuple[Annotated[int, Ge(16)], Annotated[int, Ge(16)]]] | None = None
    """Sizes (height, width) in px that replace ``image_size``: each image is cropped to the size of the nearest aspect
    ratio and scaled to it. null: images keep their aspect ratio."""
    latents: str | None = None
    """URI of a bundle (such as a run's ``initial``) whose VAE encodes every image at the sizes of its preset, so that
    training runs of that model skip the VAE. null: no latents."""
    jpeg_quality: Annotated[Count, Le(100)] = 95
    """JPEG quality (1 to 100) of images that are encoded again, without chroma subsampling."""
    shard_mib: Mib = 256
    """Approximate size of a pack of images in MiB, counted before images are scaled down."""

    def __post_init__(self) -> None:
        if self.buckets == []:
            raise ConfigError("shards.buckets has no size", value=self.buckets, fix="use [[H, W], ...], or null")


@configuration()
class CurateConfig:
    """Where the raw shards are, where the snapshots go, and what is kept."""

    raw: str | list[str]
    """URI of the prefix with the raw shards (``*.tar``, plain or compressed), a brace expression
    (``s3://bucket/raw/shard-{000000..000063}.tar``), or a list of these. All are below one prefix."""
    dataset: str
    """URI of the prefix of the snapshots and of ``work/``, from which a killed run resumes."""
    embedder: str = "efficientnet-lite0-colour"
    """The embedder that gives similarities: packaged, a folder or a Hub id (``facebook/dinov2-small@<revision>``).
    The filters that compare similarities have defaults for the default embedder. ``none`` embeds nothing: these
    filters have to be skipped, and all remaining photos of a subject are pairs."""
    limits: Limits = field(default_factory=Limits)
    """Maximum sizes of files in raw shards."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """Where the subject of a photo comes from."""
    captioner: Captioner | None = None
    """Model that captions photos without a caption; null: their prompt is made of their class."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Maximum length of captions."""
    seed: Seed = 0
    """Seed of random choices."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """The filters."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """How kept images become triplets."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """How images are stored."""
    actors: ActorConfig = field(default_factory=ActorConfig)
    """The actors that run models: each reads raw shards and holds the embedder. They change no result."""

    def __post_init__(self) -> None:
        if self.embedder != NO_EMBEDDER:
            return
        if self.labels.found is not None:
            raise ConfigError(
                "labels.found needs an embedder, and embedder is 'none'", value="labels.found", fix="choose an embedder"
            )
        needs = {"can_skip", "compares_embeddings"}
        blind = sorted(name for name, step in self.filters.steps() if needs.issubset(step.traits))
        if blind:
            raise ConfigError(
                "these filters compare embeddings, and embedder is 'none'",
                value=blind,
                fix=f"set filters.skip to {sorted({*self.filters.skip, *blind})}, or choose an embedder",
            )
        band = self.filters.no_pair
        if not band.min_similarity <= 0 <= band.max_similarity:
            raise ConfigError(
                "with embedder 'none' every similarity is 0, which is outside the band of filters.no_pair",
                value=[band.min_similarity, band.max_similarity],
                fix="set filters.no_pair.min_similarity to 0, or choose an embedder",
            )
