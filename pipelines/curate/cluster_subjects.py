"""Cluster subjects: group photos without a subject label by their embeddings, across all raw shards.

Photos are first assigned to cells (:mod:`pipelines.curate.cells`) and shuffled by them, so that a task reads and
compares the photos of one cell only. Within a cell each photo is compared with all others (``faiss``): in cells of less
than some 100,000 photos that is faster than an approximate index. The connected components of the graph of nearest
neighbours are then divided by average linkage, since a chain of pairs can join two subjects. The results are shuffled
back by groups of raw shards. So each table is read twice and each photo shuffled once, whatever the number of raw
shards and cells.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.data.shuffle import KEY_BITS, Shuffle
from lookalike.storage import ObjectInfo, Store
from pipelines.actors import Columns
from pipelines.curate.cells import Cells, one_thread
from pipelines.curate.config import FoundConfig
from pipelines.curate.graph import components
from pipelines.curate.rows import IMAGE_SCHEMA, subject_hash
from pipelines.curate.tables import read_first, read_part, read_table, vectors_array, vectors_of, write_table
from pipelines.curate.work import Group
from pipelines.curate.workspace import Workspace

# Legend: N photos of a cell or a raw shard, D embedding dimensions.

_SAMPLED_SHARDS, _SAMPLED_PHOTOS = 512, 262_144  # from which the centroids are computed: 0.8 GB of 1536-d vectors
_MAX_CELLS = _SAMPLED_PHOTOS // 8
_AT_ONCE = 16  # requests
_LARGEST = 4096  # maximum images of a component whose similarities are all computed
_STEP = 0.02  # increase of the similarity threshold that divides a larger component
_UNLABELLED = subject_hash("")

_SUBJECT_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),  # of the group of raw shards
        ("shard", pa.int32()),  # position of the raw shard in its group
        ("sha256", pa.string()),
        ("subject", pa.string()),
    ]
)
"""The subject that was found for a photo of a raw shard."""


@dataclass(frozen=True)
class Sampled:
    """The tables from which the centroids are computed."""

    vectors: tuple[ObjectInfo, ...]
    all_bytes: int
    """Bytes of the tables of embeddings of all raw shards."""


@dataclass(frozen=True)
class ClusterWork:
    """What all tasks of this stage share."""

    dataset: Store
    workspace: Workspace
    settings: FoundConfig
    seed: int
    groups: int
    """Groups of raw shards."""
    cells: int = 0
    """Cells; set once they are known."""
    dim: int = 0
    """Dimensions of a vector; set with the cells."""

    @property
    def assigned(self) -> Shuffle:
        """The unlabelled photos and their vectors by cell; a unit is a group of raw shards."""
        columns = [("key", pa.int64()), ("group", pa.int32()), ("shard", pa.int32()), ("sha256", pa.string())]
        schema = pa.schema([*columns, ("vector", pa.list_(pa.float16(), self.dim))])
        return Shuffle.for_size(self.dataset, self.workspace.assigned(), schema, "key", self.groups, self.cells)

    @property
    def subjects(self) -> Shuffle:
        """The subjects of photos by group of raw shards; a unit is a cell."""
        prefix = self.workspace.cell_subjects()
        return Shuffle.for_size(self.dataset, prefix, _SUBJECT_SCHEMA, "key", self.cells, self.groups)

    def read_cells(self) -> Cells:
        """Return the cells. Raises InputError if their table is damaged."""
        return Cells.from_table(read_table(self.dataset, self.workspace.centroids()))


class Stage(NamedTuple):
    """Units of work of one kind: ``task(shared, unit)`` for each unit."""

    task: Any
    shared: Any
    units: Any
    """Their number, or a description of each."""
    noun: str


def cluster_stages(
    dataset: Store, workspace: Workspace, settings: FoundConfig, seed: int, groups: Sequence[Group]
) -> Iterator[Stage]:
    """Yield the stages that find subjects. All units of one have to be done before the next one is asked for."""
    work = ClusterWork(dataset, workspace, settings, seed, len(groups))
    yield Stage(find_centroids, work, [_sampled(groups)], "sets of centroids")
    cells = work.read_cells()
    work = replace(work, cells=len(cells), dim=cells.fine.shape[1])
    yield Stage(assign_cells, work, groups, "groups of raw shards assigned to cells")
    yield from _shuffled(work.assigned)
    yield Stage(group_cell, work, work.cells, "cells grouped")
    yield from _shuffled(work.subjects)
    yield Stage(label_shards, work, groups, "groups of raw shards labelled")


def find_centroids(work: ClusterWork, sampled: Sampled) -> Columns:
    """Write the centroids of all cells, from a sample of bounded size; there is one unit.

    The number of cells follows from the photos without a subject in the sampled tables, and from the size of all.
    """
    store, key = work.dataset, work.workspace.centroids()
    if not store.exists(key):
        share = -(-_SAMPLED_PHOTOS // len(sampled.vectors))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            parts = list(pool.map(lambda info: _first_unlabelled(store, info, share), sampled.vectors))
        photos = sum(count for count, _ in parts)
        photos = photos * sampled.all_bytes // max(1, sum(info.size for info in sampled.vectors))
        cells = min(max(1, -(-photos // work.settings.images_per_cell)), _MAX_CELLS)
        sample_ND = np.concatenate([vectors_ND for _, vectors_ND in parts])
        write_table(store, key, Cells.of_sample(sample_ND, cells, work.seed).to_table())
    return {"done": np.array([0])}


def assign_cells(work: ClusterWork, group: Group) -> Columns:
    """Write the unlabelled photos of a group of raw shards with their vectors, by cell."""
    shuffle = work.assigned
    if not shuffle.is_written(1, group.number):
        cells, parts = work.read_cells(), [shuffle.schema.empty_table()]
        for position, shard in enumerate(group.shards):
            table = read_part(work.dataset, shard.vectors, (_UNLABELLED, _UNLABELLED + 1))
            contents = table["sha256"].to_numpy(zero_copy_only=False).astype(str)
            contents, first = np.unique(contents, return_index=True)
            vectors_ND = _finite(vectors_of(table["vector"]))[first]
            columns = {
                "key": _spread(cells.assign(vectors_ND), work.cells),
                "group": np.full(len(contents), group.number, np.int32),
                "shard": np.full(len(contents), position, np.int32),
                "sha256": pa.array(contents, pa.string()),
                "vector": vectors_array(vectors_ND),
            }
            parts.append(pa.table(columns).cast(shuffle.schema))
        shuffle.write(group.number, pa.concat_tables(parts))
    return {"group": np.array([group.number])}


def group_cell(work: ClusterWork, cell: int) -> Columns:
    """Write the subject of every photo of a cell; its name contains the lowest content hash of its photos.

    A cell of more than twice ``images_per_cell`` photos, such as one of a million nearly equal photos, which no
    centroids divide, is read in ``parts`` by content hash, and a subject in two parts becomes two.
    """
    shuffle, parts = work.subjects, 1
    if not shuffle.is_written(1, cell):
        most = 2 * work.settings.images_per_cell
        photos = _Bounded(most)
        rows = work.assigned.read(cell, photos.keep)
        parts = -(-photos.seen // most) or 1
        if parts == 1:
            found = _found(rows, work)
        else:
            del rows
            found = pa.concat_tables([_found(_part(work, cell, part, parts), work) for part in range(parts)])
        shuffle.write(cell, found)
    return {"cell": np.array([cell]), "parts": np.array([parts])}


def label_shards(work: ClusterWork, group: Group) -> Columns:
    """Write the rows and vectors of a group of raw shards with the subjects that were found, sorted by them."""
    store, workspace = work.dataset, work.workspace
    subjects = None
    for position, shard in enumerate(group.shards):
        rows_key, vectors_key = workspace.found("rows", shard.number), workspace.found("vectors", shard.number)
        if store.exists(rows_key):  # written last
            continue
        if subjects is None:
            subjects = work.subjects.read(group.number)
        named = subjects.filter(pc.equal(subjects["shard"], position))
        rows = _labelled(read_table(store, shard.rows.key), named)
        write_table(store, vectors_key, _vectors_of_rows(rows, read_table(store, shard.vectors.key)))
        write_table(store, rows_key, rows)
    return {"group": np.array([group.number])}


def merge_range(shared: tuple[Shuffle, int], unit: int) -> Columns:
    """Do a unit of a level of a shuffle."""
    shuffle, level = shared
    shuffle.merge(level, unit)
    return {"range": np.array([unit])}


def index_range(shared: tuple[Shuffle, int], parent: int) -> Columns:
    """Write an index of a level of a shuffle."""
    shuffle, level = shared
    shuffle.write_index(level, parent)
    return {"range": np.array([parent])}


def _shuffled(shuffle: Shuffle) -> Iterator[Stage]:
    """Yield what remains of a shuffle once its first level is written."""
    for level in range(1, len(shuffle.bits) + 1):
        if level > 1:
            yield Stage(merge_range, (shuffle, level), shuffle.units(level), "ranges merged")
        yield Stage(index_range, (shuffle, level), shuffle.indices(level), "ranges indexed")


def _sampled(groups: Sequence[Group]) -> Sampled:
    """The tables of all raw shards, or of a fixed number of them at equal distances."""
    tables = [shard.vectors for group in groups for shard in group.shards]
    count = min(len(tables), _SAMPLED_SHARDS)
    chosen = [tables[i * len(tables) // count] for i in range(count)]
    return Sampled(tuple(chosen), sum(info.size for info in tables))


def _first_unlabelled(store: Store, info: ObjectInfo, share: int) -> tuple[int, np.ndarray]:
    """Return the number of photos of a raw shard without a subject, and the vectors of the first of them,
    float16 [N, D]."""
    count, table = read_first(store, info, _UNLABELLED, share)
    return count, _finite(vectors_of(table["vector"])).astype(np.float16)


def _finite(vectors_ND: np.ndarray) -> np.ndarray:
    """The vectors, with zero for those that are not finite, so that they are similar to none."""
    return np.where(np.isfinite(vectors_ND).all(axis=1, keepdims=True), vectors_ND, np.float32(0))


def _spread(numbers_N: np.ndarray, count: int) -> np.ndarray:
    """The keys of ranges of a shuffle into ``count`` ranges, int64 [N], so that key i is in range i."""
    return np.asarray(numbers_N.astype(np.int64) << KEY_BITS - (count - 1).bit_length())


class _Bounded:
    """Keeps the rows of a range while it is read, until there are too many; counts them all."""

    def __init__(self, most: int) -> None:
        self._most, self.seen = most, 0

    def keep(self, rows: pa.Table) -> pa.Table:
        self.seen += len(rows)
        return rows if self.seen <= self._most else rows.slice(0, 0)


def _part(work: ClusterWork, cell: int, part: int, parts: int) -> pa.Table:
    """The photos of a cell whose content hashes are in one of ``parts`` ranges."""

    def take(rows: pa.Table) -> pa.Table:
        leading = np.array([int(content[:8], 16) for content in rows["sha256"].to_pylist()], np.int64)
        return rows.filter(pa.array(leading * parts >> 32 == part, pa.bool_()))

    return work.assigned.read(cell, take)


def _found(rows: pa.Table, work: ClusterWork) -> pa.Table:
    """The subjects of the photos of a cell."""
    contents = rows["sha256"].to_numpy(zero_copy_only=False).astype(str)
    contents, first, number = np.unique(contents, return_index=True, return_inverse=True)
    labels = group(vectors_of(rows["vector"].take(pa.array(first))), work.settings)
    names = np.array([f"found-{content[:16]}" for content in contents], object)[labels]
    columns = {
        "key": _spread(rows["group"].to_numpy(), work.groups),
        "shard": rows["shard"],
        "sha256": rows["sha256"],
        "subject": pa.array(names[number], pa.string()),
    }
    return pa.table(columns, _SUBJECT_SCHEMA)


def _labelled(rows: pa.Table, named: pa.Table) -> pa.Table:
    """The rows of a raw shard with the subjects of :data:`_SUBJECT_SCHEMA`, sorted by subject."""
    at = pc.index_in(rows["sha256"], value_set=named["sha256"].combine_chunks())
    found = pc.fill_null(named["subject"].take(at), "")
    subject = pc.if_else(pc.equal(rows["subject"], ""), found, rows["subject"]).combine_chunks().dictionary_encode()
    hash_of = np.array([subject_hash(name) for name in subject.dictionary.to_pylist()], np.int64)
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    columns["subject"] = subject.cast(pa.string())
    columns["subject_hash"] = pa.array(hash_of[subject.indices.to_numpy()], pa.int64())
    table = pa.table([columns[name] for name in IMAGE_SCHEMA.names], IMAGE_SCHEMA)
    table = table.sort_by([("subject_hash", "ascending"), ("offset", "ascending")])
    return table.replace_schema_metadata(rows.schema.metadata)  # with its notes


def _vectors_of_rows(rows: pa.Table, vectors: pa.Table) -> pa.Table:
    """The vector of each row that has one, in the order of the rows."""
    at = pc.index_in(rows["sha256"], value_set=vectors["sha256"].combine_chunks())
    table = rows.select(["subject_hash", "sha256"]).filter(pc.is_valid(at)).replace_schema_metadata(None)
    return table.append_column("vector", vectors["vector"].take(at.drop_null()))


def group(vectors_ND: np.ndarray, settings: FoundConfig) -> np.ndarray:
    """Return the group of each of N unit-norm vectors [N, D], int [N]: images of one subject have the same number."""
    import faiss

    n = len(vectors_ND)
    labels = np.arange(n)
    if n < 2:
        return labels
    with one_thread():
        index = faiss.IndexFlatIP(vectors_ND.shape[1])
        index.add(vectors_ND)
        products_NM, neighbours_NM = index.search(vectors_ND, min(n, settings.neighbours + 1))
    heads, tails = np.repeat(np.arange(n), neighbours_NM.shape[1]), neighbours_NM.reshape(-1)
    similarity = np.round(products_NM.reshape(-1), 3)
    for members in _joined(heads, tails, similarity, np.arange(n), settings.min_similarity):
        if len(members) > _LARGEST:  # each is as good as equal to its neighbours
            labels[members] = members[0]
        else:
            labels[members] = members[_cut(vectors_ND[members], settings.min_similarity)]
    return labels


def _joined(
    heads: np.ndarray, tails: np.ndarray, similarity: np.ndarray, members: np.ndarray, threshold: float
) -> Iterator[np.ndarray]:
    """Yield the connected components of ``members`` by pairs above the threshold; large ones at a higher threshold."""
    near = (similarity >= threshold) & np.isin(heads, members) & np.isin(tails, members)
    size = int(max(heads.max(), tails.max())) + 1
    component = components(heads[near], tails[near], size)
    order = np.argsort(component[members], kind="stable")
    for part in np.split(members[order], np.flatnonzero(np.diff(component[members][order])) + 1):
        if len(part) > _LARGEST and threshold < 1:
            yield from _joined(heads, tails, similarity, part, min(1.0, threshold + _STEP))
        elif len(part) > 1:
            yield part


def _cut(vectors_ND: np.ndarray, min_similarity: float) -> np.ndarray:
    """Return for each of N vectors [N, D] the position of the first of its group by average linkage, int [N]."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distance_NN = 1 - np.round(vectors_ND @ vectors_ND.T, 3)
    np.fill_diagonal(distance_NN, 0)
    tree = linkage(squareform(np.maximum(distance_NN, distance_NN.T), checks=False), "average")
    labels = fcluster(tree, 1 - min_similarity, "distance")
    _, first, group_of = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(first[group_of])
