"""Links: find subjects that share an image, or a near copy of one, so that they are in the same split.

Near copies are found by locality-sensitive hashing: the 64 bits of the perceptual hash are divided into four bands, and
images with an equal band are compared, which finds every pair within 3 bits and many within 12. As in
``filters.near_duplicate`` their embeddings have to be similar too, since hashes of plain things are close.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.annotators.embedder import NO_EMBEDDER
from pipelines.actors import Columns
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.graph import components
from pipelines.curate.rows import COMPONENT_SCHEMA, LINK_SCHEMA, in_hash_range
from pipelines.curate.tables import read_part, vectors_of, write_table
from pipelines.curate.work import StageWork

_BANDS, _BITS = 4, 16
_BLOCK = 2048  # images on each side of a comparison
_COLUMNS = ["subject_hash", "subject", "sha256", "phash"]


def link_units(work: StageWork) -> int:
    """Return the number of units of :func:`find_links`: one for each range of content hashes, and if near copies are
    dropped as many again for each band."""
    near = work.config.filters.has(NearDuplicate) and work.config.embedder != NO_EMBEDDER
    return work.content_partitions * (1 + _BANDS * near)


def find_links(work: StageWork, unit: int) -> Columns:
    """Write which subjects share an image (the first units) or a near copy (those of the bands), unless that was done
    before; return the number of links."""
    store, key = work.dataset, work.workspace.links(unit)
    if not store.exists(key):
        band, partition = divmod(unit, work.content_partitions)
        links = sorted(set(_sharing(work, partition) if band == 0 else _resembling(work, band - 1, partition)))
        write_table(store, key, pa.table([[a for a, _ in links], [b for _, b in links]], LINK_SCHEMA))
    return {"links": np.array([work.read_links(key, LINK_SCHEMA).num_rows])}


def join_links(work: StageWork, unit: int) -> Columns:
    """Write the component of each linked subject: the first name of all subjects that a chain of links leads to."""
    tables = [work.read_links(work.workspace.links(i), LINK_SCHEMA) for i in range(link_units(work))]
    links = pa.concat_tables(tables)
    names, ends = np.unique(
        np.concatenate([links[name].to_numpy(zero_copy_only=False).astype(str) for name in LINK_SCHEMA.names]),
        return_inverse=True,
    )
    heads, tails = np.split(ends, 2)
    component = components(heads, tails, len(names))
    _, first = np.unique(component, return_index=True)  # names are sorted, so the first one is the lowest
    table = pa.table({"subject": names, "component": names[first[component]]}, COMPONENT_SCHEMA)
    write_table(work.dataset, work.workspace.components(), table)
    return {"subjects": np.array([len(names)])}


def _sharing(work: StageWork, partition: int) -> Iterator[tuple[str, str]]:
    """Yield pairs of subjects with an image of the same bytes."""
    columns = ["sha256", "subject"]
    rows = pa.concat_tables(work.read_screened(unit, partition).select(columns) for unit in work.inputs.units)
    rows = rows.sort_by([(name, "ascending") for name in columns]).combine_chunks()
    before, after = rows.slice(0, max(0, len(rows) - 1)), rows.slice(1)
    shared = pc.and_(pc.equal(before["sha256"], after["sha256"]), pc.not_equal(before["subject"], after["subject"]))
    sides = (side["subject"].filter(shared).to_pylist() for side in (before, after))
    yield from zip(*sides, strict=True)


def _resembling(work: StageWork, band: int, partition: int) -> Iterator[tuple[str, str]]:
    """Yield pairs of subjects with near copies, among hashes with an equal band whose value is in a range."""
    parts = []
    for unit in work.inputs.units:
        rows = work.read_screened(unit).select(_COLUMNS)
        value = rows["phash"].to_numpy().astype(np.uint64) >> np.uint64(band * _BITS) & np.uint64((1 << _BITS) - 1)
        mine = in_hash_range(value, partition, work.content_partitions, _BITS)
        rows = rows.append_column("band", pa.array(value, pa.int64()))
        rows = rows.append_column("shard", pa.array(np.full(len(rows), unit), pa.int64()))
        parts.append(rows.filter(pa.array(mine, pa.bool_())))
    rows = pa.concat_tables(parts).sort_by([("band", "ascending"), ("sha256", "ascending")])
    values = rows["band"].to_numpy()
    for members in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(values)) + 1):
        if len(members) > 1:
            yield from _near(work, rows.take(pa.array(members)))


def _near(work: StageWork, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield pairs of subjects with near copies, among images whose hashes have an equal band."""
    settings = work.config.filters.near_duplicate
    hashes = rows["phash"].to_numpy().astype(np.uint64)
    subjects = rows["subject"].to_pylist()
    places = rows["subject_hash"].to_numpy()
    for first in range(0, len(rows), _BLOCK):
        for second in range(first, len(rows), _BLOCK):
            a, b = slice(first, first + _BLOCK), slice(second, second + _BLOCK)
            distance = np.bitwise_count(hashes[a, None] ^ hashes[None, b])
            near = (distance <= settings.max_hash_distance) & (places[a, None] != places[None, b])
            for i, j in zip(*np.nonzero(near), strict=True):
                left, right = first + int(i), second + int(j)
                similarity = _vector(work, rows.slice(left, 1)) @ _vector(work, rows.slice(right, 1))
                if np.round(similarity, 3) >= settings.required(distance[i, j]):
                    yield min(subjects[left], subjects[right]), max(subjects[left], subjects[right])


def _vector(work: StageWork, row: pa.Table) -> np.ndarray:
    place = row["subject_hash"][0].as_py()
    table = read_part(work.dataset, work.vectors[row["shard"][0].as_py()], (place, place + 1))
    mine = table.filter(pc.equal(table["sha256"], row["sha256"][0]))["vector"]
    return np.asarray(vectors_of(mine)[0])
