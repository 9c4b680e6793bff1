"""What the tasks of the stages after the index share, and readers of tables that earlier stages have written.

All units of a stage share one :class:`StageWork` whose size does not depend on the number of raw shards; a unit is a
number, or a small description such as :class:`Group`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.data.passed_over import PassedOver
from lookalike.data.ranges import ByteRange, read_ranges
from lookalike.data.shuffle import Shuffle
from lookalike.documents import decoding, parse_record
from lookalike.storage import ObjectInfo, Store, open_store
from pipelines.curate.changed import check_image, read_image
from pipelines.curate.config import CurateConfig
from pipelines.curate.inputs import CAPTION, Inputs
from pipelines.curate.near import SCHEMA as BAND_SCHEMA
from pipelines.curate.near import Sketch
from pipelines.curate.raw import raw_store
from pipelines.curate.rows import (
    COMPONENT_SCHEMA,
    CONTENT_SCHEMA,
    REPEATED_SCHEMA,
    REQUEST_SCHEMA,
    SUBJECT_BITS,
    end_schema,
    gathered_schema,
    subject_hash,
)
from pipelines.curate.summary import Summary
from pipelines.curate.tables import read_part, read_table
from pipelines.curate.workspace import PlanTable, ShuffleName, Workspace

# A change of these needs another revision of ``gather`` in inputs.py: objects below work/ follow from them.
_CONTENT_ROWS = 100_000, 1_000_000  # rows of the shuffle by content in one range
_BAND_IMAGES = 25_000, 200_000  # images whose band rows are in one range
_PAIR_IMAGES = 200_000  # images to a range of pairs; few images are in a pair
_WORTH_A_TASK, _AT_ONCE = 5_000, 4  # rows of a range, and number of ranges, that a small data set is divided into
_GROUP_BYTES = 1 << 20, 32 << 20  # of the tables in a group, at least and at most
_GROUPS, _RANGES = 64, 128  # that a data set is divided into, as far as the bounds of their sizes allow

# Legend: N image rows, D dimensions of a vector.


@dataclass(frozen=True)
class IndexedShard:
    """The tables of one raw shard."""

    number: int
    """In the order of the raw shards' keys."""
    id: str
    """As in the keys of its results (:func:`pipelines.curate.workspace.shard_id`)."""
    rows: ObjectInfo
    """The table of image rows."""
    vectors: ObjectInfo
    """The table of embeddings."""


@dataclass(frozen=True)
class Group:
    """Consecutive raw shards whose tables are read in one unit."""

    number: int
    shards: tuple[IndexedShard, ...]


@dataclass(frozen=True)
class Sample:
    """What a sample of the raw shards says about all of them."""

    images: int
    """Estimated image rows in all tables together; exact for few raw shards."""
    mean: np.ndarray
    """Mean of the unit-norm vectors, float32 [D]."""
    limits: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    """Of :meth:`pipelines.curate.near.Sketch.limits`."""


@dataclass(frozen=True)
class StageWork:
    """What all tasks of the stages after the index share."""

    config: CurateConfig
    inputs: Inputs
    raw: Store
    """The store below which the raw shards are."""
    dataset: Store
    """The store of the snapshots and of ``work/``."""
    shards: tuple[IndexedShard, ...] = ()
    """The tables of all raw shards; none in a task (:meth:`for_tasks`)."""
    raw_shards: int = 1
    """Number of raw shards."""
    width: int = 1
    """Number of :meth:`groups`."""
    sample: Sample = field(default_factory=lambda: Sample(0, np.zeros(1, np.float32)), compare=False)
    """Set before the images are gathered."""
    images: int = 0
    """Image rows in all tables together; set once they are gathered."""
    cells: int = 0
    """Cells of photos without a subject; set while subjects are found."""
    capped: int = 0
    """Entries of images under keys of near copies that have more candidates than are compared; set with
    :attr:`linked`."""
    linked: bool = False
    """Whether any two subjects share an image or a near copy of one."""
    members: PassedOver = field(default_factory=PassedOver)
    """Counts of the members of all raw shards, and of those that are part of no sample; set with :attr:`images`."""

    @classmethod
    def of(cls, config: CurateConfig, inputs: Inputs, *, clustered: bool = True) -> "StageWork":
        """Return the work on these inputs, all of whose raw shards are indexed.

        With ``labels.found`` its tables are those with the subjects that were found, unless ``clustered`` is false.
        """
        dataset, workspace = open_store(config.dataset), inputs.workspace
        if config.labels.found is None or not clustered:
            tables = indexed(dataset, workspace)
            keys = [(workspace.rows(shard), workspace.vectors(shard)) for shard in inputs.ids]
        else:
            tables = {info.key: info for info in dataset.list(workspace.prefix("found"))}
            keys = [(workspace.found("rows", i), workspace.found("vectors", i)) for i in inputs.units]
        shards = tuple(
            IndexedShard(number, inputs.ids[number], tables[rows], tables[vectors])
            for number, (rows, vectors) in enumerate(keys)
        )
        work = cls(config, inputs, raw_store(config.raw), dataset, shards, len(shards))
        return replace(work, width=sum(1 for _ in work.groups()))

    def for_tasks(self) -> "StageWork":
        """Return the work without the lists of raw shards, whose size a task must not depend on."""
        return replace(self, inputs=self.inputs.for_tasks(), shards=())

    def groups(self) -> Iterator[Group]:
        """Yield all raw shards in groups of about equal bytes of tables, which depend on the listing alone."""
        least, most = _GROUP_BYTES
        total = sum(shard.rows.size + shard.vectors.size for shard in self.shards)
        limit = min(most, max(least, total // _GROUPS))
        number, size, members = 0, 0, list[IndexedShard]()
        for shard in self.shards:
            own = shard.rows.size + shard.vectors.size
            if members and size + own > limit:
                yield Group(number, tuple(members))
                number, size, members = number + 1, 0, []
            members.append(shard)
            size += own
        yield Group(number, tuple(members))

    @property
    def workspace(self) -> Workspace:
        """The keys of this curation's objects in :attr:`dataset`."""
        return self.inputs.workspace

    @property
    def sketch(self) -> Sketch:
        """The sketch of vectors by which candidates for near copies are chosen."""
        return Sketch(self.sample.mean)

    def read_image(self, image: Mapping[str, Any]) -> bytes:
        """Return the file of an image, by ``shard``, ``unpacked``, ``offset``, ``length`` and ``sha256`` of its row.

        Raises InputError if the bytes are no longer those that were indexed.
        """
        return read_image(self.raw, self.dataset, image)

    def read_images(self, images: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Return the files of images as :meth:`read_image` does, read at once with neighbours joined."""
        files: list[bytes] = [b""] * len(images)
        for store, unpacked in ((self.raw, False), (self.dataset, True)):
            mine = [i for i, image in enumerate(images) if bool(image["unpacked"]) == unpacked]
            places = [
                ByteRange(images[i]["unpacked"] or images[i]["shard"], images[i]["offset"], images[i]["length"])
                for i in mine
            ]
            for i, data in zip(mine, read_ranges(store, places), strict=True):
                files[i] = check_image(self.raw, self.dataset, images[i], data)
        return files

    def shuffle(self, name: ShuffleName) -> Shuffle:
        """Return a shuffle of the row stages.

        ==================  ==============================================================  ==================
        name                rows                                                            written by
        ==================  ==============================================================  ==================
        subjects            all images, with reason and vector, by subject hash             groups
        contents            screened images by the hash of their bytes                      groups
        bands               screened images under 15 keys each, by the key                  groups
        repeated            images that repeat an earlier one, by subject hash              ranges of contents
        repeated_of_shards  the same by raw shard, for models                               ranges of contents
        requests            both images of each candidate pair of near copies, by subject   ranges of bands
        ends                these with their vectors, by pair                               ranges of subjects
        ==================  ==============================================================  ==================
        """
        dim, subjects, contents = len(self.sample.mean), self.partitions, self._bounded_ranges(_CONTENT_ROWS)
        schema, key, width, partitions = {
            "subjects": (gathered_schema(dim), "subject_hash", self.width, subjects),
            "contents": (CONTENT_SCHEMA, "place", self.width, contents),
            "bands": (BAND_SCHEMA, "key", self.width, self._bounded_ranges(_BAND_IMAGES)),
            "repeated": (REPEATED_SCHEMA, "place", self.content_partitions, subjects),
            "repeated_of_shards": (REPEATED_SCHEMA, "place", self.content_partitions, self.width),
            "requests": (REQUEST_SCHEMA, "subject_hash", self.band_partitions, subjects),
            "ends": (end_schema(dim), "pair", self.partitions, self._ranges(_PAIR_IMAGES)),
        }[name]
        prefix = self.workspace.shuffle(name)
        return Shuffle.for_size(self.dataset, prefix, schema, key, width, partitions)

    def score_shuffle(self, revision: str) -> Shuffle:
        """Return the shuffle of the answers of one model by subject hash."""
        is_text = self.inputs.models.get(CAPTION) == revision
        value = pa.string() if is_text else pa.float64()
        schema = pa.schema([("subject_hash", pa.int64()), ("sha256", pa.string()), ("value", value)])
        prefix = self.workspace.score_shuffle(revision)
        return Shuffle.for_size(self.dataset, prefix, schema, "subject_hash", self.width, self.partitions)

    @property
    def partitions(self) -> int:
        """Number of ranges of subject hashes that are planned one by one; it never depends on the cluster's size.

        The power of two that is nearest to what the setting asks for; a small data set has a few, so that cores do not
        wait for one.
        """
        return max(self._ranges(self.config.plan.rows_per_partition), min(_AT_ONCE, self._ranges(_WORTH_A_TASK)))

    @property
    def content_partitions(self) -> int:
        """Number of ranges of content hashes that are compared one by one."""
        return self._bounded_ranges(_CONTENT_ROWS)

    @property
    def band_partitions(self) -> int:
        """Number of ranges of keys of near copies that are compared one by one."""
        return self._bounded_ranges(_BAND_IMAGES)

    def _ranges(self, rows: int) -> int:
        """The power of two that is nearest to the number of ranges of so many images."""
        return 1 << max(0, round(math.log2(max(1, self.sample.images) / rows)))

    def _bounded_ranges(self, rows: tuple[int, int]) -> int:
        """As :meth:`_ranges`: about 128, if each has images between these bounds."""
        return self._ranges(min(rows[1], max(rows[0], self.sample.images // _RANGES)))

    def span(self, partition: int) -> tuple[int, int]:
        """Return the half-open range of subject hashes of a partition."""
        return self.shuffle("subjects").span(partition)

    def partition_of(self, subject: str) -> int:
        """Return the partition that a subject is planned in."""
        low, high = self.span(0)
        return subject_hash(subject) // (high - low)

    def place_of_shard(self, numbers: np.ndarray) -> np.ndarray:
        """Return the key of raw shards in the shuffle ``repeated_of_shards``, int64 [N]: near ones are in one range."""
        return np.asarray(numbers.astype(np.int64) * ((1 << SUBJECT_BITS) // self.raw_shards))

    def read_links(self, key: str, schema: pa.Schema, span: tuple[int, int] | None = None) -> pa.Table:
        """Return a table of links or components, or those of a range of subject hashes.

        Raises InputError if another program has written other columns.
        """
        fix = "remove it, and run the same command again"
        with decoding("a table of links", self.dataset.uri_of(key), fix=fix):
            info = None if span is None else next((info for info in self.dataset.list(key) if info.key == key), None)
            table = read_table(self.dataset, key) if info is None else read_part(self.dataset, info, span)
            return table.select(schema.names).cast(schema)

    def split_hashes(self, subjects: pa.Table, span: tuple[int, int] | None = None) -> np.ndarray:
        """Return the number in [0, 1) that decides about the split of each subject, float64 [N].

        It is the subject's own, or for linked subjects that of one of them.

        Args:
            subjects: rows of :data:`pipelines.curate.rows.SUBJECT_SCHEMA`, sorted by ``subject_hash``.
            span: half-open range of subject hashes that holds them all; without it all components are read.
        """
        own: np.ndarray = subjects["split_hash"].to_numpy().copy()
        if not self.linked or not len(own):
            return own
        table = self.read_links(self.workspace.components(), COMPONENT_SCHEMA, span)
        members, hashes = table["subject_hash"].to_numpy(), subjects["subject_hash"].to_numpy()
        places = np.searchsorted(members, hashes)
        is_linked = places < len(members)
        is_linked[is_linked] = members[places[is_linked]] == hashes[is_linked]
        own[is_linked] = table["split_hash"].to_numpy()[places[is_linked]]
        return own

    def read_plan(self, partition: int, table: PlanTable, span: tuple[int, int] | None = None) -> pa.Table:
        """Return the planned images or subjects of a partition, or those of a range of subject hashes."""
        return read_table(self.dataset, self.workspace.plan(partition, table), span)

    def read_summary(self, partition: int) -> Summary:
        """Return the summary of a partition's plan."""
        key = self.workspace.summary(partition)
        return parse_record(Summary, self.dataset.read(key), self.dataset.uri_of(key))


def indexed(dataset: Store, workspace: Workspace) -> dict[str, ObjectInfo]:
    """Return the tables that the index has written so far for these settings, by key."""
    return {info.key: info for prefix in workspace.index_prefixes for info in dataset.list(prefix)}
