"""Prepared samples: rows of a snapshot, read and turned into what a model takes, with Ray or without."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookalike.data.triplets import Split, load_images, load_latents, read_table
from lookalike.models.preprocess import Preprocessor
from lookalike.storage import Store, open_store
from lookalike.training.bundles import local_bundle
from lookalike.training.plan import PADDING

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TripletSource:
    """Where samples come from: one split of one snapshot version, prepared for one bundle's models."""

    snapshot_uri: str
    """URI of the version, ``…/v0001``."""
    split: Split
    """Which rows."""
    bundle_uri: str
    """Whose tokenizer and image processing prepare them."""
    latents: bool = False
    """Whether the snapshot's latents are those of the bundle's VAE, and are read."""

    def table(self) -> pa.Table:
        """The rows of the split."""
        return _table(self.snapshot_uri, self.split)


@lru_cache(maxsize=4)
def _table(snapshot_uri: str, split: Split) -> pa.Table:
    return read_table(open_store(snapshot_uri), split)


@lru_cache(maxsize=2)
def _preprocessor(bundle_uri: str) -> Preprocessor:
    return Preprocessor.from_bundle(local_bundle(bundle_uri))


def prepare(source: TripletSource, indices: npt.NDArray[np.int64]) -> Columns:
    """Read and prepare samples: the preprocessor's columns, ``sample_id``, ``subject`` and ``prompt`` (str), ``weight``
    (f32).

    A padding slot repeats the first row with weight 0.
    """
    store = open_store(source.snapshot_uri)
    rows = source.table().take(np.where(indices == PADDING, 0, indices)).to_pylist()
    images = [load_images(store, row) for row in rows]
    columns: Columns = _preprocessor(source.bundle_uri)(
        [row["prompt"] for row in rows], [references for _, references in images], [target for target, _ in images]
    )
    if source.latents:
        columns |= _latents(store, rows, columns["reference_mask"].shape[1])
    columns["sample_id"] = np.array([row["triplet_id"] for row in rows])
    columns["subject"] = np.array([row["subject"] for row in rows])
    columns["prompt"] = np.array([row["prompt"] for row in rows])
    columns["weight"] = (indices != PADDING).astype(np.float32)
    return columns


def _latents(store: Store, rows: list[dict[str, Any]], slots: int) -> Columns:
    """``target_latents`` float32 ``[B, T, C]`` and ``reference_latents`` ``[B, slots, T', C]``, zero where none is."""
    read = [load_latents(store, row) for row in rows]
    tokens, channels = read[0][1].shape[1:]
    references = np.zeros((len(rows), slots, tokens, channels), np.float32)
    for place, (_, latents) in zip(references, read, strict=True):
        place[: len(latents)] = latents
    return {"target_latents": np.stack([target for target, _ in read]), "reference_latents": references}


def validation_indices(source: TripletSource, samples: int) -> npt.NDArray[np.int64]:
    """The same ``samples`` rows each time, spread over the whole split so that neighbours are other subjects."""
    rows = source.table().num_rows
    order = np.random.default_rng(0).permutation(rows)
    return np.resize(order, samples).astype(np.int64)
