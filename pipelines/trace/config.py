"""The configurations of `jobs/trace.py`, one for each subcommand."""

from dataclasses import field

from lookalike.config import POSITIONAL
from lookalike.errors import ConfigError
from lookalike.values import configuration


@configuration()
class TraceModelConfig:
    """Show what a model was made from: run, snapshot, raw shards, photos, base models, scores, decision."""

    model: str = field(metadata=POSITIONAL)
    """``models:/NAME@champion``, ``models:/NAME/3``, or the URI of a bundle."""
    store: list[str] = field(default_factory=list)
    """URI below which bundles, runs and snapshots that were moved are found by their hashes; may be repeated."""
    photos: bool = False
    """List each raw shard, and each photo that the model may have learned from."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI. A bundle's URI needs none."""
    json: bool = False
    """Print JSON, one line for each row."""


@configuration()
class TraceImageConfig:
    """Show what was made of a photo: snapshots, runs, models, and the images that these generated."""

    image: str = field(metadata=POSITIONAL)
    """SHA-256 of the photo's bytes as they lie in the raw shards (its first 8 digits or more), or its file."""
    dataset: list[str] = field(default_factory=list)
    """URI of a data set, all of whose snapshots are searched; may be repeated."""
    store: list[str] = field(default_factory=list)
    """URI below which training runs, with the snapshots that they read, generations and evaluations are found; may be
    repeated."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI. Without one, versions of models are left out."""
    json: bool = False
    """Print JSON, one line for each row."""

    def __post_init__(self) -> None:
        if not self.dataset and not self.store:
            fix = "name a data set with --dataset, or a place with runs with --store"
            raise ConfigError("there is no place to search", fix=fix)
