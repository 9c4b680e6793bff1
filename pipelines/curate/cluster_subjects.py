"""Cluster subjects: group photos without a subject label by their embeddings, across all raw shards.

Images are first assigned to cells around k-means centroids, so that a task compares the images of one cell only. Within
a cell the nearest neighbours come from an approximate index (``usearch``, HNSW). The connected components of the
neighbour graph are then divided by average linkage, since a chain of pairs can join two subjects.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.actors import Columns
from pipelines.curate.config import CurateConfig, FoundConfig
from pipelines.curate.graph import components
from pipelines.curate.inputs import Inputs
from pipelines.curate.rows import IMAGE_SCHEMA, subject_hash
from pipelines.curate.tables import read_footer, read_part, read_table, vectors_array, vectors_of, write_table
from pipelines.curate.work import IndexedShard, StageWork

# Legend: N images of a cell, D embedding dimensions, K cells.

_SAMPLES_PER_CELL = 256  # vectors from which a centroid is computed
_LARGEST = 4096  # maximum images of a component whose similarities are all computed
_STEP = 0.02  # increase of the similarity threshold that divides a larger component


def cluster_work(config: CurateConfig, inputs: Inputs, settings: FoundConfig) -> StageWork:
    """Return what the tasks of this stage get: the tables that the index has written, and the number of cells.

    A unit is a raw shard, or a cell in :func:`group_cell`.
    """
    work = StageWork.of(config, inputs, clustered=False)
    images = sum(read_footer(work.dataset, shard.vectors)[0] for shard in work.shards)
    return replace(work, cells=-(-images // settings.images_per_cell) or 1)


def find_centroids(work: StageWork, unit: int) -> Columns:
    """Write the centroids of all cells, float16 [K, D], from a sample of each raw shard; there is one unit."""
    store, key = work.dataset, work.workspace.centroids()
    if not store.exists(key):
        share = -(-_SAMPLES_PER_CELL * work.cells // len(work.shards))
        sample_ND = np.concatenate([_unlabelled(work, shard)[1][:share] for shard in work.shards])
        cells = min(work.cells, len(sample_ND))  # most photos may have a label
        centroids_KD = np.zeros((1, sample_ND.shape[1]), np.float32)  # one cell holds all images
        if cells > 1:
            from scipy.cluster.vq import kmeans2

            centroids_KD, _ = kmeans2(sample_ND, cells, minit="++", seed=work.config.seed)
        write_table(store, key, pa.table({"vector": vectors_array(centroids_KD)}))
    return {"unit_done": np.array([unit])}


def assign_cells(work: StageWork, unit: int) -> Columns:
    """Write the unlabelled images of one raw shard with their vectors, sorted by cell."""
    store, key = work.dataset, work.workspace.assigned(unit)
    if not store.exists(key):
        contents, vectors_ND = _unlabelled(work, work.shards[unit])
        centroids_KD = vectors_of(read_table(store, work.workspace.centroids())["vector"])
        columns = {
            "cell": pa.array((vectors_ND @ centroids_KD.T).argmax(1), pa.int64()),
            "sha256": pa.array(contents, pa.string()),
            "vector": vectors_array(vectors_ND),
        }
        write_table(store, key, pa.table(columns).sort_by([("cell", "ascending"), ("sha256", "ascending")]))
    return {"unit_done": np.array([unit])}


def group_cell(work: StageWork, cell: int) -> Columns:
    """Write the subject of every image of a cell; its name contains the lowest content hash of its images."""
    store, key = work.dataset, work.workspace.cell_subjects(cell)
    if not store.exists(key):
        infos = {info.key: info for info in store.list(work.workspace.prefix("assigned"))}
        assigned = [infos[work.workspace.assigned(unit)] for unit in work.inputs.units]
        parts = [read_part(store, info, (cell, cell + 1), by="cell") for info in assigned]
        table = pa.concat_tables(parts)
        contents, first = np.unique(table["sha256"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
        vectors_ND = vectors_of(table["vector"])[first]
        settings = work.config.labels.found
        assert settings is not None
        labels = group(vectors_ND, settings)
        name = {label: f"found-{contents[np.flatnonzero(labels == label)[0]][:16]}" for label in np.unique(labels)}
        subjects = dict(zip(contents.tolist(), (name[label] for label in labels), strict=True))
        rows = [
            {"unit": unit, "sha256": content, "subject": subjects[content]}
            for unit, part in enumerate(parts)
            for content in part["sha256"].to_pylist()
        ]
        schema = pa.schema([("unit", pa.int64()), ("sha256", pa.string()), ("subject", pa.string())])
        write_table(store, key, pa.Table.from_pylist(rows, schema))
    return {"unit_done": np.array([cell])}


def label_shard(work: StageWork, unit: int) -> Columns:
    """Write the rows and vectors of one raw shard with the subjects that were found, sorted by them."""
    store = work.dataset
    rows_key, vectors_key = work.workspace.found("rows", unit), work.workspace.found("vectors", unit)
    if not store.exists(rows_key):  # written last
        subjects: dict[str, str] = {}
        for cell in range(work.cells):
            named = read_table(store, work.workspace.cell_subjects(cell), (unit, unit + 1), by="unit")
            subjects.update(zip(named["sha256"].to_pylist(), named["subject"].to_pylist(), strict=True))
        indexed = read_table(store, work.shards[unit].rows.key)
        rows = indexed.to_pylist()
        places: dict[str, list[int]] = {}
        for row in rows:
            row["subject"] = row["subject"] or subjects.get(row["sha256"], "")
            row["subject_hash"] = subject_hash(row["subject"])
            places.setdefault(row["sha256"], []).append(row["subject_hash"])
        table = read_table(store, work.shards[unit].vectors.key)
        contents = table["sha256"].to_pylist()
        number = {content: i for i, content in enumerate(contents)}
        pairs = sorted({(place, content) for content in number for place in places[content]})
        vectors = table.take(pa.array([number[content] for _, content in pairs], pa.int64()))
        vectors = vectors.set_column(0, "subject_hash", pa.array([place for place, _ in pairs], pa.int64()))
        write_table(store, vectors_key, vectors)
        order = [("subject_hash", "ascending"), ("offset", "ascending")]
        named = pa.Table.from_pylist(rows, IMAGE_SCHEMA).sort_by(order)
        write_table(store, rows_key, named.replace_schema_metadata(indexed.schema.metadata))  # with its notes
    return {"unit_done": np.array([unit])}


def group(vectors_ND: np.ndarray, settings: FoundConfig) -> np.ndarray:
    """Return the group of each of N unit-norm vectors [N, D], int [N]: images of one subject have the same number."""
    from usearch.index import Index

    n = len(vectors_ND)
    labels = np.arange(n)
    if n < 2:
        return labels
    index = Index(ndim=vectors_ND.shape[1], metric="cos", dtype="f32")
    index.add(np.arange(n), vectors_ND, threads=1)  # several threads would build a different graph each time
    matches = index.search(vectors_ND, min(n, settings.neighbours + 1), threads=1)
    heads, tails = np.repeat(np.arange(n), matches.keys.shape[1]), matches.keys.reshape(-1).astype(np.int64)
    similarity = np.round(1 - matches.distances.reshape(-1), 3)
    for members in _joined(heads, tails, similarity, np.arange(n), settings.min_similarity):
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
            yield from _joined(heads, tails, similarity, part, threshold + _STEP)
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


def _unlabelled(work: StageWork, shard: IndexedShard) -> tuple[list[str], np.ndarray]:
    """Return the sorted content hashes and the vectors [N, D] of the images of a raw shard without a subject."""
    rows = read_table(work.dataset, shard.rows.key, columns=["sha256", "subject", "error"])
    unlabelled = rows.filter(pc.and_(pc.equal(rows["subject"], ""), pc.equal(rows["error"], "")))["sha256"]
    table = read_table(work.dataset, shard.vectors.key)
    table = table.filter(pc.is_in(table["sha256"], value_set=unlabelled.combine_chunks())).sort_by("sha256")
    contents = table["sha256"].to_pylist()
    first = [i for i, content in enumerate(contents) if i == 0 or content != contents[i - 1]]
    vectors_ND = vectors_of(table["vector"])
    return [contents[i] for i in first], vectors_ND[first]
