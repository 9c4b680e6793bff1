"""Ingest: write photos of known subjects into raw WebDataset shards, with their bytes unchanged."""

from pipelines.ingest.config import IngestConfig, SampleWorldConfig
from pipelines.ingest.run import ingest

__all__ = ["IngestConfig", "SampleWorldConfig", "ingest"]
