"""Read the images of a raw shard, or of a range of subjects with what the stages before the plan have found out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data.passed_over import PassedOver
from lookalike.documents import decoding
from pipelines.curate.filters import Photos, with_scores
from pipelines.curate.rows import IMAGE_SCHEMA, ROW_SCHEMA
from pipelines.curate.tables import notes_of, read_table, vectors_of
from pipelines.curate.work import IndexedShard, StageWork

_LARGE_RANGE = 512 << 20  # bytes of a range of subjects whose vectors are read apart from its rows

# Legend: N image rows, D dimensions of a vector.


@dataclass(frozen=True)
class SubjectRows:
    """All images of a range of subjects, in the order of subject hash, subject, raw shard, offset and key. The subject
    hash of an image without a subject is a hash of its place (:func:`pipelines.curate.rows.image_hashes`)."""

    rows: pa.Table
    """Columns of :data:`pipelines.curate.rows.ROW_SCHEMA`."""
    reasons: np.ndarray
    """The image filter that drops each, object [N]; empty if none does."""
    numbers: np.ndarray
    """Number of each image, int64 [N]."""
    repeated: np.ndarray
    """Whether an earlier image has the same bytes, bool [N]."""
    vectors: np.ndarray
    """Unit-norm embeddings, float32 [N, D]; zero where there is none, and in a large range also where none is needed:
    of images that were dropped, or are beyond the photos of a subject that are compared."""


def read_subjects(work: StageWork, partition: int) -> SubjectRows:
    """Return all images of a range of subjects, with what the stages before the plan have found out about them."""
    shuffle = work.shuffle("subjects")
    dim = len(work.sample.mean)
    if shuffle.size(partition) <= _LARGE_RANGE:
        table = _in_order(shuffle.read(partition))
        return _subject_rows(work, partition, table, vectors_of(table["vector"]))
    table = _in_order(shuffle.read(partition, lambda rows: rows.drop_columns("vector")))
    subjects = _subject_rows(work, partition, table, np.zeros((len(table), dim), np.float32))
    wanted = np.sort(subjects.numbers[_compared(work, partition, subjects)])

    def reduce(rows: pa.Table) -> pa.Table:
        mask = np.isin(rows["number"].to_numpy(), wanted)
        return rows.select(["subject_hash", "number", "vector"]).filter(pa.array(mask))

    part = shuffle.read(partition, reduce)
    places = positions_of(part["number"].to_numpy(), subjects.numbers)
    subjects.vectors[places] = vectors_of(part["vector"])
    return subjects


def _subject_rows(work: StageWork, partition: int, table: pa.Table, vectors_ND: np.ndarray) -> SubjectRows:
    numbers = table["number"].to_numpy()
    repeated = np.zeros(len(numbers), bool)
    if work.inputs.filters["content"]:
        repeated = np.isin(numbers, work.shuffle("repeated").read(partition)["number"].to_numpy())
    reasons = table["reason"].to_numpy(zero_copy_only=False).astype(object)
    return SubjectRows(table.select(ROW_SCHEMA.names), reasons, numbers, repeated, vectors_ND)


def _compared(work: StageWork, partition: int, subjects: SubjectRows) -> np.ndarray:
    """Return which images of a range need their vectors, bool [N]: those that the filters which compare the photos
    of a subject see, and those of candidate pairs."""
    left = (subjects.reasons == "") & ~subjects.repeated
    for name, step in work.config.filters.scored():
        scores = {} if step.scorer is None else read_scores(work, work.inputs.models[name], partition)
        kept = np.flatnonzero(left)
        left[kept[step.drop(with_scores(subjects.rows.take(pa.array(kept)), scores))]] = False
    bound = work.config.filters.large_subject
    kept = np.flatnonzero(left)
    rows = subjects.rows.take(pa.array(kept))
    for own in np.split(kept, _begins(rows)):
        if len(own) > bound.max_photos:
            photos = Photos(subjects.rows.take(pa.array(own)), np.arange(len(own))[None])
            left[own[bound.drop(photos)[0]]] = False
    if work.inputs.links_copies:
        left |= np.isin(subjects.numbers, work.shuffle("requests").read(partition)["number"].to_numpy())
    return np.asarray(left)


def read_repeated(work: StageWork, shard: IndexedShard) -> np.ndarray:
    """Return the numbers of the images of a raw shard that repeat an earlier one: int64 [M]."""
    if not work.inputs.filters["content"]:
        return np.zeros(0, np.int64)
    shuffle = work.shuffle("repeated_of_shards")
    place = work.place_of_shard(np.array([shard.number]))[0]
    low, high = shuffle.span(0)
    numbers = shuffle.read(int(place) // (high - low))["number"].to_numpy()
    return np.asarray(numbers[numbers >> 32 == shard.number])


def read_scores(work: StageWork, revision: str, partition: int) -> dict[str, Any]:
    """Return what the model of that revision said of the images of a range of subjects, by content hash."""
    table = work.score_shuffle(revision).read(partition)
    return dict(zip(table["sha256"].to_pylist(), table["value"].to_pylist(), strict=True))


def read_rows(work: StageWork, shard: IndexedShard, members: PassedOver | None = None) -> pa.Table:
    """Return the rows of a raw shard, with the columns of :data:`pipelines.curate.rows.ROW_SCHEMA` and ``number``, in
    the order of subject hash, subject, offset and key; ``members`` gets the counts of the members of its tar."""
    table = read_table(work.dataset, shard.rows.key)
    with decoding("a table of image rows", work.dataset.uri_of(shard.rows.key)):
        notes = notes_of(table)
        (members or PassedOver()).merge(PassedOver.from_json(notes["members"]))
        unpacked = work.workspace.unpacked(shard.id) if notes["unpacked"] else ""
        rows = table.select(IMAGE_SCHEMA.names).cast(IMAGE_SCHEMA)
    hashes, offsets, begins = rows["subject_hash"].to_numpy(), rows["offset"].to_numpy(), _begins(rows)
    tied = (hashes[1:] == hashes[:-1]) & (offsets[1:] <= offsets[:-1])
    if tied.any() or (hashes[begins] == hashes[begins - 1]).any():
        rows = rows.sort_by([(name, "ascending") for name in _ORDER])
    numbers = (shard.number << 32) + np.arange(len(rows), dtype=np.int64)
    rows = rows.append_column("unpacked", pa.repeat(pa.scalar(unpacked), len(rows)))
    return rows.append_column("number", pa.array(numbers))


def positions_of(numbers: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the position of each of M ``numbers`` in N different ones, int64 [M]. All must be there."""
    order = np.argsort(among, kind="stable")
    places = order[np.minimum(np.searchsorted(among, numbers, sorter=order), len(order) - 1)] if len(order) else order
    assert len(places) == len(numbers), "an image is missing from its range"
    assert (among[places] == numbers).all(), "an image is missing from its range"
    return places


_ORDER = ("subject_hash", "subject", "shard", "offset", "key")


def _in_order(rows: pa.Table) -> pa.Table:
    """Return rows of a range, which are sorted by subject hash, raw shard and offset, in their final order."""
    hashes, begins = rows["subject_hash"].to_numpy(), _begins(rows)
    if (hashes[begins] == hashes[begins - 1]).any():  # two subjects with the same hash
        return rows.sort_by([(name, "ascending") for name in _ORDER])
    return rows


def _begins(rows: pa.Table) -> np.ndarray:
    """Return the positions at which another subject begins, without the first."""
    if len(rows) < 2:
        return np.zeros(0, np.int64)
    hashes, subjects = rows["subject_hash"].to_numpy(), rows["subject"].combine_chunks()
    differ = np.asarray(pc.not_equal(subjects.slice(1), subjects.slice(0, len(subjects) - 1)))
    return np.flatnonzero((hashes[1:] != hashes[:-1]) | differ) + 1
