"""Links: subjects that share an image, or a near copy of one, so that the split keeps them on one side.

Near copies are looked for by locality-sensitive hashing: the 64 bits of the perceptual hash are cut into four bands,
and images are compared where a band is equal, which finds every pair within 3 bits and many within 12. As within a
subject, the embeddings have the last word: plain things have near hashes.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.annotators.embedder import NO_EMBEDDER
from lookalike.documents import decoding
from pipelines.actors import Columns
from pipelines.curate.duplicates import find_duplicates
from pipelines.curate.filters import Photos
from pipelines.curate.graph import components
from pipelines.curate.tables import read_span, read_table, vectors_of, write_table
from pipelines.curate.work import StageWork

_BANDS, _BITS = 4, 16
_BLOCK = 2048  # images that are compared with each other at once
_COLUMNS = ["subject_hash", "subject", "sha256", "phash"]
_LINK = pa.schema([("subject", pa.string()), ("other", pa.string())])
_COMPONENT = pa.schema([("subject", pa.string()), ("component", pa.string())])


def link_units(work: StageWork) -> int:
    """Units of :func:`find_links`: ranges of content hashes, and as many of each band where near copies are dropped."""
    near = "near_duplicate" not in work.config.filters.skip and work.config.embedder != NO_EMBEDDER
    return work.content_partitions * (1 + _BANDS * near)


def compare(work: StageWork, unit: int) -> Columns:
    """A unit of :func:`find_duplicates`, which come first, or of :func:`find_links`: neither waits for the other."""
    if unit >= work.content_partitions:
        return find_links(work, unit - work.content_partitions)
    find_duplicates(work, unit)
    return {"links": np.array([0])}


def find_links(work: StageWork, unit: int) -> Columns:
    """Write which subjects share an image (the first units) or a near copy (those of the bands); returns how many."""
    store, key = work.dataset, _links_key(work, unit)
    if not store.exists(key):
        band, partition = divmod(unit, work.content_partitions)
        found = sorted(set(_sharing(work, partition) if band == 0 else _resembling(work, band - 1, partition)))
        write_table(store, key, pa.table([[a for a, _ in found], [b for _, b in found]], _LINK))
    return {"links": np.array([_read(work, key, _LINK).num_rows])}


def join_links(work: StageWork, unit: int) -> Columns:
    """Write the component of each linked subject: the first name of all that it is linked with, at any remove."""
    links = pa.concat_tables([_read(work, _links_key(work, i), _LINK) for i in range(link_units(work))])
    names, ends = np.unique(
        np.concatenate([links[name].to_numpy(zero_copy_only=False).astype(str) for name in _LINK.names]),
        return_inverse=True,
    )
    heads, tails = np.split(ends, 2)
    component = components(heads, tails, len(names))
    _, first = np.unique(component, return_index=True)  # names are sorted, so the first one is the lowest
    write_table(work.dataset, _components_key(work), pa.table({"subject": names, "component": names[first[component]]}))
    return {"subjects": np.array([len(names)])}


def read_components(work: StageWork) -> dict[str, str]:
    """The component of each subject that is linked with another."""
    table = _read(work, _components_key(work), _COMPONENT)
    return dict(zip(table["subject"].to_pylist(), table["component"].to_pylist(), strict=True))


def _read(work: StageWork, key: str, schema: pa.Schema) -> pa.Table:
    """A table of this stage. Raises InputError for one with other columns, which another program has put there."""
    table = read_table(work.dataset, key)
    fix = "remove it, and run the same command again"
    with decoding("a table of links", work.dataset.uri_of(key), fix=fix):
        return table.select(schema.names).cast(schema)


def _sharing(work: StageWork, partition: int) -> Iterator[tuple[str, str]]:
    """Pairs of subjects with an image of the same bytes."""
    parts = []
    for rows in _candidates(work):
        place = np.array([int(content[:8], 16) for content in rows["sha256"].to_pylist()], np.int64)
        mine = pa.array(place * work.content_partitions >> 32 == partition, pa.bool_())
        parts.append(rows.select(["sha256", "subject"]).filter(mine))
    rows = pa.concat_tables(parts).sort_by([("sha256", "ascending"), ("subject", "ascending")]).combine_chunks()
    before, after = rows.slice(0, max(0, len(rows) - 1)), rows.slice(1)
    shared = pc.and_(pc.equal(before["sha256"], after["sha256"]), pc.not_equal(before["subject"], after["subject"]))
    yield from zip(
        before["subject"].filter(shared).to_pylist(), after["subject"].filter(shared).to_pylist(), strict=True
    )


def _resembling(work: StageWork, band: int, partition: int) -> Iterator[tuple[str, str]]:
    """Pairs of subjects with near copies, by hashes that agree in a band whose value lies in a range."""
    parts = []
    for number, rows in enumerate(_candidates(work)):
        value = rows["phash"].to_numpy().astype(np.uint64) >> np.uint64(band * _BITS) & np.uint64((1 << _BITS) - 1)
        mine = (value * np.uint64(work.content_partitions) >> np.uint64(_BITS)) == partition
        columns = {"band": pa.array(value, pa.int64()), "shard": pa.array(np.full(len(rows), number), pa.int64())}
        for name, column in columns.items():
            rows = rows.append_column(name, column)
        parts.append(rows.filter(pa.array(mine, pa.bool_())))
    rows = pa.concat_tables(parts).sort_by([("band", "ascending"), ("sha256", "ascending")])
    values = rows["band"].to_numpy()
    for members in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(values)) + 1):
        if len(members) > 1:
            yield from _near(work, rows.take(pa.array(members)))


def _near(work: StageWork, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Pairs of subjects among images whose hashes agree in a band."""
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
                if _similarity(work, rows.slice(left, 1), rows.slice(right, 1)) >= settings.asked(distance[i, j]):
                    yield min(subjects[left], subjects[right]), max(subjects[left], subjects[right])


def _similarity(work: StageWork, one: pa.Table, other: pa.Table) -> float:
    return float(np.round(_vector(work, one) @ _vector(work, other), 3))


def _vector(work: StageWork, row: pa.Table) -> np.ndarray:
    place = row["subject_hash"][0].as_py()
    table = read_span(work.dataset, work.vectors[row["shard"][0].as_py()], (place, place + 1))
    mine = table.filter(pc.equal(table["sha256"], row["sha256"][0]))["vector"]
    return np.asarray(vectors_of(mine, mine.type.list_size)[0])


def _candidates(work: StageWork) -> Iterator[pa.Table]:
    """The labelled images of each raw shard that pass the filters which see one image."""
    for info in work.rows:
        rows = read_table(work.dataset, info.key)
        rows = rows.filter(pc.and_(pc.is_valid(rows["sha256"]), pc.not_equal(rows["subject"], "")))
        for _, step in work.config.filters.steps("image"):
            rows = rows.filter(pa.array(~step.drop(Photos(rows)), pa.bool_()))
        yield rows.select(_COLUMNS)


def _links_key(work: StageWork, unit: int) -> str:
    return work.inputs.stage_key("links", f"part-{unit:05d}.parquet")


def _components_key(work: StageWork) -> str:
    return work.inputs.stage_key("links", "components.parquet")
