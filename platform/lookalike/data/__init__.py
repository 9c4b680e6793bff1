"""Shards, images and triplets: what training and evaluation read, and what ingest and curation write."""
