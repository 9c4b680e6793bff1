"""Ingest: photographs of known subjects become raw WebDataset shards, their bytes untouched."""

from pipelines.ingest.config import IngestConfig, SampleWorldConfig
from pipelines.ingest.run import ingest

__all__ = ["IngestConfig", "SampleWorldConfig", "ingest"]
