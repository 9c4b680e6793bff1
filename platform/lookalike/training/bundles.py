"""Bundles in a store, opened where a process can read them."""

import tempfile
from functools import lru_cache
from pathlib import Path

from lookalike.storage import open_store
from lookalike.storage.store import download_tree


@lru_cache(maxsize=4)
def local_bundle(uri: str) -> Path:
    """A local folder with the bundle at ``uri``: where it stands if that is a folder here, else a copy per process."""
    return download_tree(open_store(uri), Path(tempfile.mkdtemp(prefix="lookalike-bundle-")))
