"""What the tasks of the stages after the index get: tables, partitions, and what earlier stages have written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data.passed_over import PassedOver
from lookalike.data.ranges import ByteRange, read_ranges
from lookalike.documents import decoding, parse_record
from lookalike.storage import ObjectInfo, Store, open_store
from pipelines.curate.changed import check_image, read_image
from pipelines.curate.config import CurateConfig
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import raw_store
from pipelines.curate.rows import COMPONENT_SCHEMA, IMAGE_SCHEMA, hash_range, in_hash_range, subject_hash
from pipelines.curate.summary import Summary
from pipelines.curate.tables import read_footers, read_part, read_table
from pipelines.curate.workspace import INDEX_PREFIXES, DuplicateOrder, PlanTable, Workspace

CONTENT_ROWS = 5_000_000  # rows whose hashes one task compares
_CONTENT_BITS = 32  # of a content hash, which decide about its range
_WORTH_A_TASK, _AT_ONCE = 5_000, 4  # rows of a range, and number of ranges, that a small data set is divided into


@dataclass(frozen=True)
class StageWork:
    """What a task of the stages after the index gets."""

    config: CurateConfig
    inputs: Inputs
    raw: Store
    """The store below which the raw shards are."""
    dataset: Store
    """The store of the snapshots and of ``work/``."""
    rows: tuple[ObjectInfo, ...]
    """The table of image rows of each raw shard."""
    vectors: tuple[ObjectInfo, ...]
    """The table of embeddings of each raw shard."""
    images: int
    """Image rows in all tables together."""
    cells: int = 0
    """Cells of photos without a subject; set while subjects are found."""
    linked: bool = False
    """Whether any two subjects share an image or a near copy of one."""
    scores: dict[str, tuple[ObjectInfo, ...]] = field(default_factory=dict)
    """The table of scores of each raw shard, by the revision of the model; set once the score stage is done."""
    members: PassedOver = field(default_factory=PassedOver)
    """Counts of the members of all raw shards, and of those that are part of no sample."""
    unpacked: dict[str, str] = field(default_factory=dict)
    """The key of the unpacked tar below the dataset's prefix, by the key of each compressed raw shard."""

    @classmethod
    def of(cls, config: CurateConfig, inputs: Inputs, *, clustered: bool = True) -> "StageWork":
        """Return the work on these inputs, all of whose raw shards are indexed.

        With ``labels.found`` its tables are those with the subjects that were found, unless ``clustered`` is false.
        """
        dataset, workspace = open_store(config.dataset), inputs.workspace
        if config.labels.found is None or not clustered:
            tables = indexed(dataset)
            keys = [(workspace.rows(i), workspace.vectors(i)) for i in inputs.units]
        else:
            tables = {info.key: info for info in dataset.list(workspace.prefix("found"))}
            keys = [(workspace.found("rows", i), workspace.found("vectors", i)) for i in inputs.units]
        rows = tuple(tables[key] for key, _ in keys)
        vectors = tuple(tables[key] for _, key in keys)
        images, members, unpacked = 0, PassedOver(), {}
        for i, (count, notes) in zip(inputs.units, read_footers(dataset, rows), strict=True):
            images += count
            with decoding("a table of image rows", dataset.uri_of(rows[i].key)):
                members.merge(PassedOver.from_json(notes["members"]))
                if notes["unpacked"]:
                    unpacked[inputs.shards[i].key] = workspace.unpacked(i)
        raw = raw_store(config.raw)
        return cls(config, inputs, raw, dataset, rows, vectors, images, members=members, unpacked=unpacked)

    @property
    def workspace(self) -> Workspace:
        """The keys of this curation's objects in :attr:`dataset`."""
        return self.inputs.workspace

    def read_image(self, image: Mapping[str, Any]) -> bytes:
        """Return the file of an image, by the ``shard``, ``offset``, ``length`` and ``sha256`` of its row.

        Raises InputError if the bytes are no longer those that were indexed.
        """
        unpacked = self.unpacked.get(image["shard"])
        store, key = (self.raw, image["shard"]) if unpacked is None else (self.dataset, unpacked)
        return read_image(store, key, image, self._shards[image["shard"]], self.dataset)

    def read_images(self, images: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """Return the files of images as :meth:`read_image` does, read at once with neighbours joined."""
        files: list[bytes] = [b""] * len(images)
        for unpacked in (False, True):
            store = self.dataset if unpacked else self.raw
            mine = [i for i, image in enumerate(images) if (image["shard"] in self.unpacked) == unpacked]
            keys = [self.unpacked.get(images[i]["shard"], images[i]["shard"]) for i in mine]
            places = [
                ByteRange(key, images[i]["offset"], images[i]["length"]) for key, i in zip(keys, mine, strict=True)
            ]
            for i, key, data in zip(mine, keys, read_ranges(store, places), strict=True):
                files[i] = check_image(store, key, images[i], data, self._shards[images[i]["shard"]], self.dataset)
        return files

    @cached_property
    def _shards(self) -> dict[str, ObjectInfo]:
        return {info.key: info for info in self.inputs.shards}

    @property
    def partitions(self) -> int:
        """Number of ranges of subject hashes that are planned one by one; it never depends on the cluster's size.

        As few as the setting allows, since each range looks into the table of each raw shard; a small data set has
        a few, so that cores do not wait for one.
        """
        fewest = -(-self.images // self.config.plan.rows_per_partition)
        return max(fewest, min(_AT_ONCE, self.images // _WORTH_A_TASK), 1)

    @property
    def content_partitions(self) -> int:
        """Number of ranges of content hashes that are compared one by one."""
        return -(-self.images // CONTENT_ROWS) or 1

    def span(self, partition: int) -> tuple[int, int]:
        """Return the half-open range of subject hashes of a partition."""
        return hash_range(partition, self.partitions)

    def partition_of(self, subject: str) -> int:
        """Return the partition that a subject is planned in."""
        place = subject_hash(subject)
        return next(i for i in range(self.partitions) if place < self.span(i)[1])

    def read_rows(self, span: tuple[int, int]) -> tuple[pa.Table, np.ndarray]:
        """Return the image rows of a range of subjects, and the screen's reason for each, empty if it has none.

        Both are in the order of subject, raw shard and offset; the reasons are object [N].
        """
        store, tables = self.dataset, []
        for unit, info in enumerate(self.rows):
            rows = read_part(store, info, span).cast(IMAGE_SCHEMA)
            if len(rows):  # most tables have none for a small range
                reasons = read_table(store, self.workspace.reasons(unit), span)["reason"]
                tables.append(rows.append_column("reason", reasons))
        if not tables:
            return IMAGE_SCHEMA.empty_table(), np.zeros(0, object)
        order = [(name, "ascending") for name in ("subject_hash", "subject", "shard", "offset", "key")]
        rows = pa.concat_tables(tables).sort_by(order)
        return rows.drop_columns("reason"), rows["reason"].to_numpy(zero_copy_only=False).astype(object)

    def read_screened(self, unit: int, partition: int | None = None) -> pa.Table:
        """Return the rows of raw shard ``unit`` that passed the screen, or only a range of content hashes of them."""
        rows = read_table(self.dataset, self.rows[unit].key).cast(IMAGE_SCHEMA)
        reasons = read_table(self.dataset, self.workspace.reasons(unit))["reason"]
        rows = rows.filter(pc.equal(reasons, ""))
        if partition is None or self.content_partitions == 1:
            return rows
        places = np.array([int(content[: _CONTENT_BITS // 4], 16) for content in rows["sha256"].to_pylist()], np.int64)
        return rows.filter(pa.array(in_hash_range(places, partition, self.content_partitions, _CONTENT_BITS)))

    def read_duplicates(self, span: tuple[int, int], by: DuplicateOrder) -> set[tuple[str, int, str]]:
        """Return (shard, offset, key) of the repeated images of a range of ``subject_hash`` or ``unit`` (a raw shard).

        Linked members share their offset.
        """
        repeated: set[tuple[str, int, str]] = set()
        for partition in range(self.content_partitions):
            table = read_table(self.dataset, self.workspace.duplicates(partition, by), span, by=by)
            repeated.update(zip(*(table[name].to_pylist() for name in ("shard", "offset", "key")), strict=True))
        return repeated

    def read_scores(self, revision: str, span: tuple[int, int]) -> dict[str, Any]:
        """Return what the model of that revision said of the images of a range of subjects, by content hash."""
        scores: dict[str, Any] = {}
        for info in self.scores[revision]:
            table = read_part(self.dataset, info, span)
            scores.update(zip(table["sha256"].to_pylist(), table["value"].to_pylist(), strict=True))
        return scores

    def read_links(self, key: str, schema: pa.Schema) -> pa.Table:
        """Return a table of links or components. Raises InputError if another program has written other columns."""
        table = read_table(self.dataset, key)
        fix = "remove it, and run the same command again"
        with decoding("a table of links", self.dataset.uri_of(key), fix=fix):
            return table.select(schema.names).cast(schema)

    def read_components(self) -> dict[str, str]:
        """Return the component of each subject that is linked with another."""
        table = self.read_links(self.workspace.components(), COMPONENT_SCHEMA)
        return dict(zip(table["subject"].to_pylist(), table["component"].to_pylist(), strict=True))

    def read_plan(self, partition: int, table: PlanTable, span: tuple[int, int] | None = None) -> pa.Table:
        """Return the planned images or subjects of a partition, or those of a range of subject hashes."""
        return read_table(self.dataset, self.workspace.plan(partition, table), span)

    def split_hashes(self, subjects: pa.Table, span: tuple[int, int]) -> np.ndarray:
        """Return the split hash of each row of a subjects table whose subjects lie in ``span``: float64 [N].

        Linked subjects have the same one.
        """
        return np.asarray(subjects["split_hash"].to_numpy())

    def read_summary(self, partition: int) -> Summary:
        """Return the summary of a partition's plan."""
        key = self.workspace.summary(partition)
        return parse_record(Summary, self.dataset.read(key), self.dataset.uri_of(key))


@dataclass(frozen=True)
class Layout:
    """The division of all subjects into the units of materialise, and into the splits."""

    split_cut: float
    """Subjects whose split hash is below it are validation."""
    ends: np.ndarray
    """int64 [partitions]: the number of units of each partition and those before it."""

    @property
    def units(self) -> int:
        """Units of materialise."""
        return int(self.ends[-1])

    def partition_of(self, unit: int) -> tuple[int, int]:
        """Return the partition of a unit, and the unit's number in it."""
        partition = int(np.searchsorted(self.ends, unit, side="right"))
        return partition, unit - (int(self.ends[partition - 1]) if partition else 0)


@dataclass(frozen=True)
class StoredBefore:
    """The image table of the parent, whose stored images a version uses again."""

    version: Store
    """Store of the parent."""
    files: dict[str, str]
    """Hashes of the lists of its image table, by name, in their order."""
    first_hashes: tuple[int, ...]
    """The lowest subject hash of each list."""


@dataclass(frozen=True)
class MaterialiseWork:
    """What a task that stores images and writes parts of tables gets."""

    stage: StageWork
    version: Store
    """Store of the version that is being made."""
    layout: Layout
    before: StoredBefore | None = None
    """Where images are stored already; None if no parent has images in the same form."""
    tainted: frozenset[str] = frozenset()
    """Keys of packs with an image that was taken down; no image in them is used again."""

    @property
    def name(self) -> str:
        """Names the version and the parent whose images it uses, below ``work/``."""
        return self.version.name if self.before is None else f"{self.version.name}-of-{self.before.version.name}"


def indexed(dataset: Store) -> dict[str, ObjectInfo]:
    """Return the tables that the index has written so far, by key."""
    return {info.key: info for prefix in INDEX_PREFIXES for info in dataset.list(prefix)}
