"""Curation: raw shards become an immutable snapshot of triplets, with a reason for every image that was dropped."""

from pipelines.curate.config import CurateConfig
from pipelines.curate.run import Curated, curate

__all__ = ["CurateConfig", "Curated", "curate"]
