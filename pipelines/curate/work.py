"""What every stage after the index is told, and how the image table is cut into partitions of subjects."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from lookalike.data.passed_over import PassedOver
from lookalike.documents import decoding
from lookalike.storage import ObjectInfo, Store, open_store
from pipelines.curate.changed import read_image
from pipelines.curate.config import CurateConfig
from pipelines.curate.inputs import WORK, Inputs
from pipelines.curate.raw import raw_store
from pipelines.curate.rows import IMAGE_SCHEMA, partition_range, subject_hash
from pipelines.curate.tables import read_footer, read_span

CONTENT_ROWS = 5_000_000  # rows whose hashes one task compares
_WORTH_A_TASK, _AT_ONCE = 5_000, 4  # rows of a range, and ranges, that a small data set is cut into


@dataclass(frozen=True)
class StageWork:
    """The work of the stages that follow the index; a unit is a partition."""

    config: CurateConfig
    inputs: Inputs
    rows: tuple[ObjectInfo, ...]
    """The table of image rows of each raw shard."""
    vectors: tuple[ObjectInfo, ...]
    """The table of embeddings of each raw shard."""
    images: int
    """Image rows in all tables together."""
    linked: bool = False
    """Whether any two subjects share an image or a near copy of one."""
    scores: dict[str, tuple[ObjectInfo, ...]] = field(default_factory=dict)
    """What models say of the images of each raw shard, by the revision of the model; made after the duplicates."""
    members: PassedOver = field(default_factory=PassedOver)
    """Members of all raw shards, and those that are part of no sample."""
    unpacked: dict[str, str] = field(default_factory=dict)
    """The key of the unpacked tar below the dataset's prefix, by the key of each compressed raw shard."""

    @classmethod
    def of(cls, config: CurateConfig, inputs: Inputs) -> "StageWork":
        """The work that follows once every shard is indexed."""
        dataset = open_store(config.dataset)
        found = indexed(dataset)
        keys = inputs.rows_key, inputs.vectors_key
        if config.labels.found is not None:
            found = {info.key: info for info in dataset.list(inputs.stage_key("found", ""))}
            keys = partial(inputs.found_key, "rows"), partial(inputs.found_key, "vectors")
        rows, vectors = (tuple(found[key(i)] for i in inputs.units) for key in keys)
        images, members, unpacked = 0, PassedOver(), {}
        with ThreadPoolExecutor(16) as pool:  # a footer each
            footers = pool.map(lambda info: read_footer(dataset, info), rows)
            for i, (count, notes) in zip(inputs.units, footers, strict=True):
                images += count
                with decoding("a table of image rows", dataset.uri_of(rows[i].key)):
                    members.merge(PassedOver.from_json(notes["members"]))
                    if notes["unpacked"]:
                        unpacked[inputs.shards[i].key] = inputs.unpacked_key(i)
        return cls(config, inputs, rows, vectors, images, members=members, unpacked=unpacked)

    @property
    def dataset(self) -> Store:
        """Where all of it is kept."""
        return open_store(self.config.dataset)

    @property
    def raw(self) -> Store:
        """Below which the raw shards are."""
        return raw_store(self.config.raw)

    def read_image(self, image: Mapping[str, Any]) -> bytes:
        """The file of an image, by the ``shard``, ``offset`` and ``length`` of its row. All stages
        after the index read through this.

        Raises:
            InputError: the bytes are no longer those that were indexed.
        """
        unpacked = self.unpacked.get(image["shard"])
        store, key = (self.raw, image["shard"]) if unpacked is None else (self.dataset, unpacked)
        return read_image(store, key, image, self._shards[image["shard"]], self.dataset)

    @cached_property
    def _shards(self) -> dict[str, ObjectInfo]:
        return {info.key: info for info in self.inputs.shards}

    @property
    def partitions(self) -> int:
        """How many ranges of subject hashes are planned one by one. A matter of rows, never of the cluster's size.

        As few as the setting allows, since each range looks into the table of each raw shard; but a small data set is
        cut into a few, so that cores do not wait for one.
        """
        fewest = -(-self.images // self.config.plan.rows_per_partition)
        return max(fewest, min(_AT_ONCE, self.images // _WORTH_A_TASK), 1)

    @property
    def content_partitions(self) -> int:
        """How many ranges of content hashes are compared one by one."""
        return -(-self.images // CONTENT_ROWS) or 1

    def span(self, partition: int) -> tuple[int, int]:
        """The half-open range of subject hashes of a partition."""
        return partition_range(partition, self.partitions)

    def partition_of(self, subject: str) -> int:
        """The partition that a subject is planned in."""
        place = subject_hash(subject)
        return next(i for i in range(self.partitions) if place < self.span(i)[1])

    def read_rows(self, span: tuple[int, int]) -> pa.Table:
        """Image rows of a range of subjects, in the order of subject, shard and offset."""
        store = self.dataset
        tables = [read_span(store, info, span) for info in self.rows]
        order = [(name, "ascending") for name in ("subject_hash", "subject", "shard", "offset", "key")]
        return pa.concat_tables(tables).cast(IMAGE_SCHEMA).sort_by(order)


def indexed(dataset: Store) -> dict[str, ObjectInfo]:
    """The tables that the index has written so far, by key."""
    return {info.key: info for kind in ("rows", "vectors") for info in dataset.list(f"{WORK}/{kind}/")}
