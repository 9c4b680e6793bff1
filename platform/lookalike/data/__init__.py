"""Shards, images and triplets, which ingest and curation write and training and evaluation read."""
