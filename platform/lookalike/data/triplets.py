"""Triplets: a target image, its prompt, and one or more reference images of the same subject.

A snapshot keeps one row per triplet in ``triplets.parquet``. A row says where the bytes of each image lie in a shard of
the same snapshot, so that any row can be read alone, in any order, by range.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from lookalike.data.images import decode
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store

__all__ = [
    *("SCHEMA", "TABLE", "Split", "Triplet", "load_images", "load_latents", "read_table", "read_triplets"),
    "write_latents",
]

TABLE = "triplets.parquet"
Split = Literal["train", "validation"]

SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("split", pa.string()),
        ("subject", pa.string()),
        ("class_name", pa.string()),
        ("prompt", pa.string()),
        ("shard", pa.string()),
        ("target_offset", pa.int64()),
        ("target_length", pa.int64()),
        ("reference_offsets", pa.list_(pa.int64())),
        ("reference_lengths", pa.list_(pa.int64())),
        ("reference_similarities", pa.list_(pa.float32())),
        ("target_image", pa.string()),
        ("reference_images", pa.list_(pa.string())),
        ("latents_offset", pa.int64()),  # null where none were encoded
        ("latents_length", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Triplet:
    """One row of ``triplets.parquet``."""

    triplet_id: str
    """Unique in its snapshot; the key of the sample in ``shard``."""
    split: str
    """``train`` or ``validation``; a subject is in one of them only."""
    subject: str
    """The identity that all images of the triplet show."""
    class_name: str
    """What kind of thing the subject is ("backpack"); may be empty."""
    prompt: str
    """Caption of the target."""
    shard: str
    """Key of the shard in the version's store, for example ``shards/train-000000.tar``."""
    target_offset: int
    """First byte of the target image in ``shard``."""
    target_length: int
    """Bytes of the target image."""
    reference_offsets: tuple[int, ...]
    """First byte of each reference image in ``shard``."""
    reference_lengths: tuple[int, ...]
    """Bytes of each reference image."""
    reference_similarities: tuple[float, ...]
    """Cosine similarity of each reference to the target, by the embedder that the manifest names."""
    target_image: str
    """SHA-256 (hex) of the raw target file, as in ``images.parquet``."""
    reference_images: tuple[str, ...]
    """SHA-256 (hex) of each raw reference file."""
    latents_offset: int | None = None
    """First byte of the VAE's latents in ``shard``, where the curation has encoded them (``shards.latents``)."""
    latents_length: int | None = None
    """Their bytes."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Triplet":
        """A triplet from a row of the table as Arrow, Ray Data or pandas give it."""
        values = {f.name: row.get(f.name) for f in fields(cls)}
        return cls(**{name: _plain(value) for name, value in values.items()})


def read_table(version_store: Store, split: Split | None = None) -> pa.Table:
    """The triplet table of one snapshot version (:data:`SCHEMA`), of one split or both, in the order of the shards."""
    data = version_store.read(TABLE)
    with decoding("a triplet table", version_store.uri_of(TABLE), fix="restore the file, or curate again"):
        table = pq.read_table(io.BytesIO(data), schema=SCHEMA)
    if split is None:
        return table
    chosen = table.filter(pc.equal(table["split"], split))
    if len(chosen) == 0:
        raise InputError(f"no {split} triplets in the snapshot", value=version_store.uri, fix="curate more subjects")
    return chosen


def read_triplets(version_store: Store, split: Split | None = None) -> list[Triplet]:
    """The rows of :func:`read_table` as objects."""
    return [Triplet.from_row(row) for row in read_table(version_store, split).to_pylist()]


def load_images(version_store: Store, row: Triplet | Mapping[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Read the images of one triplet by range: the target and its references, each uint8 RGB ``[H, W, 3]``, upright."""
    triplet = row if isinstance(row, Triplet) else Triplet.from_row(row)

    def load(offset: int, length: int) -> np.ndarray:
        return decode(version_store.read_range(triplet.shard, offset, length))

    references = zip(triplet.reference_offsets, triplet.reference_lengths, strict=True)
    return load(triplet.target_offset, triplet.target_length), [load(*where) for where in references]


def write_latents(target: np.ndarray, references: np.ndarray) -> bytes:
    """Packed latents of a triplet, ``[T, C]`` and ``[R, T', C]``, as a safetensors file of float16."""
    tensors = {"target": target, "references": references}
    return bytes(save({name: np.ascontiguousarray(tensor, np.float16) for name, tensor in tensors.items()}))


def load_latents(version_store: Store, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read the latents of one triplet by range: the target's ``[T, C]`` and the references' ``[R, T', C]``, float32.

    Raises:
        InputError: the snapshot holds none.
    """
    triplet = Triplet.from_row(row)
    if triplet.latents_offset is None or triplet.latents_length is None:
        raise InputError("the triplet has no latents", value=triplet.triplet_id, fix="curate with shards.latents")
    tensors = load(version_store.read_range(triplet.shard, triplet.latents_offset, triplet.latents_length))
    return tensors["target"].astype(np.float32), tensors["references"].astype(np.float32)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    return tuple(value) if isinstance(value, (list, tuple)) else value
