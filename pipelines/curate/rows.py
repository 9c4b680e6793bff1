"""Schemas of the tables of a curation run, and hashes of subjects and contents."""

import hashlib

import numpy as np
import pyarrow as pa

# The image table: one row per image that came in.
IMAGE_SCHEMA = pa.schema(
    [
        ("subject_hash", pa.int64()),  # of ``subject``; tables are sorted by it, and a partition is a range of it
        ("key", pa.string()),
        ("shard", pa.string()),  # key of the raw shard below the raw prefix
        ("offset", pa.int64()),  # first byte of the image in its shard; -1 if it was cut off
        ("length", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),  # px, upright
        ("height", pa.int32()),
        ("subject", pa.string()),
        ("class_name", pa.string()),
        ("caption", pa.string()),
        ("licence", pa.string()),
        ("consent", pa.string()),
        ("source", pa.string()),
        ("phash", pa.uint64()),
        ("sharpness", pa.float32()),  # variance of the Laplacian at a short side of 256 px
        ("luma_mean", pa.float32()),  # 0–255
        ("luma_std", pa.float32()),
        ("subject_area", pa.float32()),  # share of the image that its mask marks; null without a mask
        ("cut", pa.bool_()),  # the shard breaks off inside this sample
        ("linked", pa.bool_()),  # it is a link in its tar, so another row has the same offset
        ("error", pa.string()),  # why it cannot be decoded; empty if it can
        ("note", pa.string()),  # ignored flaws, and labels that were left out; empty if there are none
    ]
)

REFERENCE = pa.struct(
    [
        ("sha256", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("similarity", pa.float32()),
    ]
)

# The plan adds why an image was dropped (null: kept), and the reference sets for which it is the target.
PLAN_SCHEMA = pa.schema(
    [*IMAGE_SCHEMA, ("drop_reason", pa.string()), ("reference_sets", pa.list_(pa.list_(REFERENCE)))]
)

# The image table of a snapshot.
IMAGES_SCHEMA = pa.schema([field for field in PLAN_SCHEMA if field.name not in ("reference_sets", "cut", "linked")])

# A subject that has triplets.
SUBJECT_SCHEMA = pa.schema(
    [
        ("subject_hash", pa.int64()),
        ("subject", pa.string()),
        ("split_hash", pa.float64()),  # in [0, 1): decides the split
        ("triplets", pa.int64()),
        ("bytes", pa.int64()),  # of all images of all its triplets, in the raw shards
    ]
)

# Beside the rows of a raw shard, in their order: the image filter that drops each of them; empty if none does.
REASON_SCHEMA = pa.schema([("subject_hash", pa.int64()), ("reason", pa.string())])

CONFLICT = "conflicting"
"""In the column ``licence``: two licences that differ, or a value that is not a licence; ``note`` names them."""

LINK_SCHEMA = pa.schema([("subject", pa.string()), ("other", pa.string())])
COMPONENT_SCHEMA = pa.schema([("subject", pa.string()), ("component", pa.string())])

SUBJECT_BITS = 62  # of a subject hash


def sha256(data: bytes) -> str:
    """Return the hex SHA-256, which is the identity of an image's bytes."""
    return hashlib.sha256(data).hexdigest()


def subject_hash(subject: str) -> int:
    """Return the hash of a subject in [0, 2^62), the same on every machine and independent of other subjects."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") >> 64 - SUBJECT_BITS


def hash_range(number: int, ranges: int, bits: int = SUBJECT_BITS) -> tuple[int, int]:
    """Return range ``number`` of the ``ranges`` half-open ranges that hashes of ``bits`` bits are divided into."""
    return (number << bits) // ranges, ((number + 1) << bits) // ranges


def in_hash_range(hashes_N: np.ndarray, number: int, ranges: int, bits: int) -> np.ndarray:
    """Return which hashes lie in a range of :func:`hash_range`: bool [N]."""
    low, high = hash_range(number, ranges, bits)
    return np.asarray((hashes_N >= low) & (hashes_N < high))


def unit_hash(*parts: object) -> float:
    """Return a number in [0, 1) from an identity, for choices that must not depend on order or on other rows."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64
