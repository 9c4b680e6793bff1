"""Schemas of the tables of a curation run, and hashes of subjects and contents."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data.permutation import GOLDEN, mixed

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

# Rows of the stages after the index: they have all that reading their image needs.
ROW_SCHEMA = pa.schema(
    [*IMAGE_SCHEMA, ("unpacked", pa.string())]  # key below the dataset of the tar in a compressed raw shard, else empty
)

# The plan adds why an image was dropped (null: kept), and its reference sets: it is the target of one triplet for each.
# Subjects are contiguous. A reference is its number among all rows of its subject, from 0, so that it needs no copy of
# the reference's columns; ``similarities`` has the similarity of each reference to the target.
PLAN_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        ("drop_reason", pa.string()),
        ("references", pa.list_(pa.list_(pa.int32()))),
        ("similarities", pa.list_(pa.list_(pa.float32()))),
    ]
)

# Where an image is stored in a pack of the dataset; null if it is in no triplet, latents also without shards.latents.
STORED_SCHEMA = pa.schema(
    [
        ("stored_shard", pa.string()),  # key of the pack below the dataset's prefix
        ("stored_offset", pa.int64()),  # first byte of the JPEG in it
        ("stored_length", pa.int64()),
        ("stored_sha256", pa.string()),  # of the JPEG
        ("target_latents_offset", pa.int64()),  # of the latents at the target's size, in the same pack
        ("target_latents_length", pa.int64()),
        ("target_latents_sha256", pa.string()),
        ("reference_latents_offset", pa.int64()),  # of the latents at the references' size, in the same pack
        ("reference_latents_length", pa.int64()),
        ("reference_latents_sha256", pa.string()),
    ]
)

# The image table of a snapshot.
IMAGES_SCHEMA = pa.schema(
    [
        *(f for f in PLAN_SCHEMA if f.name not in {"references", "similarities", "cut", "linked", "unpacked"}),
        *STORED_SCHEMA,
    ]
)

# A subject that has triplets.
SUBJECT_SCHEMA = pa.schema(
    [
        ("subject_hash", pa.int64()),
        ("subject", pa.string()),
        ("split_hash", pa.float64()),  # in [0, 1): decides the split
        ("triplets", pa.int64()),
        ("bytes", pa.int64()),  # of the different images of its triplets, in the raw shards
    ]
)

CONFLICT = "conflicting"
"""In the column ``licence``: two licences that differ, or a value that is not a licence; ``note`` names them."""

# Rows of shuffles. ``number`` is that of an image: (number of its raw shard) << 32 | (its row in the table of that).
CONTENT_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),  # the leading 62 bits of ``sha256``
        ("sha256", pa.binary(32)),
        ("first", pa.int64()),  # orders images by (shard, offset, linked, key)
        ("number", pa.int64()),
        ("subject_hash", pa.int64()),
        ("split_hash", pa.float64()),  # of the subject alone
    ]
)
REPEATED_SCHEMA = pa.schema([("place", pa.int64()), ("number", pa.int64())])
REQUEST_SCHEMA = pa.schema(  # one of the two images of a pair that may be near copies
    [
        ("subject_hash", pa.int64()),
        ("number", pa.int64()),
        ("other", pa.int64()),  # number of the other image
        ("distance", pa.int8()),  # of their perceptual hashes, bits
    ]
)
_END_COLUMNS = [
    ("pair", pa.int64()),  # hash of both numbers
    ("number", pa.int64()),
    ("other", pa.int64()),
    ("distance", pa.int8()),
    ("subject_hash", pa.int64()),
    ("split_hash", pa.float64()),
]

# Two linked subjects, each with the split hash of its own name.
LINK_SCHEMA = pa.schema(
    [
        ("subject_hash", pa.int64()),
        ("split_hash", pa.float64()),
        ("other_hash", pa.int64()),
        ("other_split_hash", pa.float64()),
    ]
)
# The split hash of each linked subject: that of the subject with the lowest hash of all that links lead to.
COMPONENT_SCHEMA = pa.schema([("subject_hash", pa.int64()), ("split_hash", pa.float64())])

SUBJECT_BITS = 62  # of a subject hash


def gathered_schema(dim: int) -> pa.Schema:
    """Return the schema of the shuffle of images by subject, with vectors of ``dim`` dimensions."""
    vector = pa.list_(pa.float16(), dim)  # zero if there is none
    return pa.schema([*ROW_SCHEMA, ("reason", pa.string()), ("number", pa.int64()), ("vector", vector)])


def end_schema(dim: int) -> pa.Schema:
    """Return the schema of the shuffle of images of pairs, which are requests with the image's vector."""
    return pa.schema([*_END_COLUMNS, ("vector", pa.list_(pa.float16(), dim))])


def sha256(data: bytes) -> str:
    """Return the hex SHA-256, which is the identity of an image's bytes."""
    return hashlib.sha256(data).hexdigest()


def subject_hash(subject: str) -> int:
    """Return the hash of a subject in [0, 2^62), the same on every machine and independent of other subjects."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") >> 64 - SUBJECT_BITS


def spread(numbers: np.ndarray) -> np.ndarray:
    """Hash numbers, any int64 [N], to keys in [0, 2^62), int64 [N]."""
    return np.asarray(mixed(numbers.astype(np.uint64) + GOLDEN) >> np.uint64(64 - SUBJECT_BITS)).astype(np.int64)


def subject_hashes(subjects: pa.ChunkedArray) -> np.ndarray:
    """Return the hash of each subject of a column of texts: int64 [N]."""
    column = subjects.combine_chunks().dictionary_encode(null_encoding="encode")  # many rows have the same subject
    hashes = np.array([subject_hash(str(subject)) for subject in column.dictionary.to_pylist()], np.int64)
    return np.asarray(hashes[column.indices.to_numpy()])


IMAGE_HASHED = ("subject", "shard", "offset", "key")
"""Columns that the hash of an image follows from."""


def image_hashes(rows: pa.Table) -> np.ndarray:
    """Return the hash by which images are ordered, from their :data:`IMAGE_HASHED`: int64 [N].

    It is that of their subject. An image without one has a hash of its place, since a data set may have more such
    images than one range holds; none of them is kept.
    """
    hashes = subject_hashes(rows["subject"])
    alone = np.flatnonzero(np.asarray(pc.equal(rows["subject"], "")))
    places = zip(*(rows[name].take(pa.array(alone)).to_pylist() for name in IMAGE_HASHED[1:]), strict=True)
    hashes[alone] = [subject_hash("\0".join(map(str, place))) for place in places]
    return hashes


def with_hashes(triplets: pa.Table) -> pa.Table:
    """Return a table of triplets with ``subject_hash``, by which readers find the parts of a subject."""
    return triplets.append_column("subject_hash", pa.array(subject_hashes(triplets["subject"])))


def hash_range(number: int, ranges: int, bits: int = SUBJECT_BITS) -> tuple[int, int]:
    """Return range ``number`` of the ``ranges`` half-open ranges that hashes of ``bits`` bits are divided into."""
    return (number << bits) // ranges, ((number + 1) << bits) // ranges


def unit_hash(*parts: object) -> float:
    """Return a number in [0, 1) from an identity, for choices that must not depend on order or on other rows."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64


def unit_hashes(parts: Sequence[object], *columns: Iterable[object]) -> np.ndarray:
    """Return ``unit_hash(*parts, *values)`` for the values of each row of ``columns``: float64 [N]."""
    prefix = "".join(f"{part}\0" for part in parts)
    digests = [
        hashlib.sha256((prefix + "\0".join(map(str, values))).encode()).digest()[:8]
        for values in zip(*columns, strict=True)
    ]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.float64) / 2.0**64


def content_hashes(parts: Sequence[object], contents: np.ndarray) -> np.ndarray:
    """Return a hash of the identity ``parts`` and of each of ``contents``, hex SHA-256 of any shape: uint64.

    Unlike :func:`unit_hashes` it needs no digest for each of many rows, since contents are digests.
    """
    digests_N4 = np.frombuffer(bytes.fromhex("".join(contents.ravel())), ">u8").reshape(-1, 4).astype(np.uint64)
    salt = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8]
    words_N = np.bitwise_xor.reduce(digests_N4, axis=1) ^ np.frombuffer(salt, ">u8").astype(np.uint64)
    return np.asarray(mixed(words_N).reshape(contents.shape))
