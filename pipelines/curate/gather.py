"""Gather: read the tables of a group of raw shards once, screen their images, and write three shuffles of them.

By subject with all that the plan needs, by content to find equal files, and by keys of near copies.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.config import canonical_json
from lookalike.data.passed_over import PassedOver
from lookalike.data.shards import open_object
from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import read_object
from pipelines.actors import Columns
from pipelines.curate.near import Sketch, band_rows
from pipelines.curate.rows import (
    CONTENT_SCHEMA,
    IMAGE_HASHED,
    SUBJECT_BITS,
    gathered_schema,
    image_hashes,
    unit_hash,
)
from pipelines.curate.screen import screen
from pipelines.curate.subject_rows import read_rows
from pipelines.curate.tables import read_footer, read_table, vectors_array, vectors_of
from pipelines.curate.work import Group as GroupOfShards
from pipelines.curate.work import IndexedShard, StageWork

# Legend: N images of a raw shard, D dimensions of a vector.

_SAMPLED = 64  # raw shards of a sample whose rows are counted
_SAMPLED_VECTORS, _ONE_IN = 16, 3  # raw shards of a sample whose vectors are read: at most, and of how many one


def take_sample(work: StageWork, shards: tuple[IndexedShard, ...]) -> Columns:
    """Return the ``images`` of some raw shards and the ``bytes`` of their tables of rows, and from the first row group
    of some of their vectors the ``mean`` (float32 [D]) and ``limits`` (int64) of the sketch, each as bytes.

    One unit does this, so that sums repeat.
    """
    images, size, count = 0, 0, 0
    total_D = np.zeros(1)
    for shard in shards:
        images += read_footer(work.dataset, shard.rows)[0]
        size += shard.rows.size
    for shard in shards[:: max(_ONE_IN, -(-len(shards) // _SAMPLED_VECTORS))]:
        with decoding("a Parquet table", work.dataset.uri_of(shard.vectors.key)):
            file = pq.ParquetFile(open_object(work.dataset, shard.vectors, 1 << 16))
            dim = file.schema_arrow.field("vector").type.list_size
            if file.num_row_groups:
                vectors_ND = vectors_of(file.read_row_group(0, columns=["vector"])["vector"])
                total_D = total_D + vectors_ND.sum(0, dtype=np.float64)
                count += len(vectors_ND)
            elif len(total_D) != dim:
                total_D = total_D + np.zeros(dim)
    mean = total_D / max(1, count)
    mean_D = mean.astype(np.float32)
    limits = Sketch(mean_D).limits(work.config.filters.near_duplicate) if work.inputs.links_copies else np.zeros(1)
    data = {"mean": mean_D.astype("<f4"), "limits": limits.astype("<i8")}
    columns = {name: np.array([values.tobytes()], object) for name, values in data.items()}
    return {"images": np.array([images]), "bytes": np.array([size]), **columns}


def sampled(work: StageWork) -> tuple[IndexedShard, ...]:
    """Return the raw shards of :func:`take_sample`: up to 64, at equal distances."""
    places = np.unique(np.linspace(0, len(work.shards) - 1, min(_SAMPLED, len(work.shards))).round().astype(int))
    return tuple(work.shards[place] for place in places)


def gather(work: StageWork, group: GroupOfShards) -> Columns:
    """Write the images of a group of raw shards to the shuffles, unless that was done before; return their number, and
    the counts of the members of their tars (JSON)."""
    store, key = work.dataset, work.workspace.gathered(group.number)
    if not store.exists(key):
        members = PassedOver()
        tables = [_read(work, shard, members) for shard in group.shards]
        if work.inputs.links_copies:
            bands = [_bands(work, shard, table) for shard, table in zip(group.shards, tables, strict=True)]
            work.shuffle("bands").write(group.number, pa.concat_tables(bands))
            del bands
        work.shuffle("contents").write(group.number, pa.concat_tables([_contents(work, table) for table in tables]))
        rows = pa.concat_tables(tables)
        del tables
        work.shuffle("subjects").write(group.number, rows)
        counts = {"images": len(rows), "members": members.to_json()}
        store.write(key, canonical_json(counts).encode())
    done = read_object(store, key, "images", "members")
    return {"images": np.array([done["images"]]), "members": np.array([canonical_json(done["members"])], object)}


def _read(work: StageWork, shard: IndexedShard, members: PassedOver) -> pa.Table:
    """Return the images of a raw shard as rows of the shuffle ``subjects``, and add to the counts of its members."""
    rows = read_rows(work, shard, members)
    reasons = pa.array(screen(rows, work.config.filters), pa.string())
    rows = rows.append_column("reason", reasons).append_column("vector", _vectors(work, shard, rows))
    hashes = rows["subject_hash"].to_numpy().copy()
    alone = np.asarray(pc.equal(rows["subject"], ""))
    hashes[alone] = image_hashes(rows.select(IMAGE_HASHED).filter(pa.array(alone)))
    rows = rows.set_column(rows.schema.get_field_index("subject_hash"), "subject_hash", pa.array(hashes))
    schema = gathered_schema(len(work.sample.mean))
    return rows.select(schema.names).cast(schema)


def _vectors(work: StageWork, shard: IndexedShard, rows: pa.Table) -> pa.FixedSizeListArray:
    """Return the vector of each image; zero for one that cannot be decoded."""
    table = read_table(work.dataset, shard.vectors.key)
    decoded = pc.equal(rows["error"], "")
    contents = rows["sha256"].filter(decoded).combine_chunks()
    with decoding("a table of vectors", work.dataset.uri_of(shard.vectors.key)):
        known = table["sha256"].combine_chunks()
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors_MD = flat.reshape(len(known), len(work.sample.mean))
    vectors_ND = np.zeros((len(rows), vectors_MD.shape[1]), np.float16)
    if contents.equals(known):
        vectors_ND[np.asarray(decoded)] = vectors_MD
        return vectors_array(vectors_ND)
    places = pc.index_in(contents, value_set=known)
    if places.null_count:
        missing = contents.filter(places.is_null())[0].as_py()
        uri = work.dataset.uri_of(shard.vectors.key)
        raise InputError(f"a table of vectors lacks the image {missing}", value=uri, fix="remove it and run again")
    vectors_ND[np.asarray(decoded)] = vectors_MD[places.to_numpy()]
    return vectors_array(vectors_ND)


def _bands(work: StageWork, shard: IndexedShard, table: pa.Table) -> pa.Table:
    screened = np.flatnonzero(np.asarray(pc.equal(table["reason"], "")))
    rows = table.select(["phash", "subject_hash", "vector"]).take(pa.array(screened))
    bands = band_rows(rows, vectors_of(rows["vector"]), work.sketch, shard.number)
    numbers = pa.array(screened.astype(np.int32)).take(bands["row"])
    return bands.set_column(bands.schema.get_field_index("row"), "row", numbers)


def _contents(work: StageWork, table: pa.Table) -> pa.Table:
    """Return rows of the shuffle ``contents``: the screened images of a raw shard."""
    keys = table.select(["offset", "linked", "key"])
    order = np.lexsort((keys["linked"].to_numpy(zero_copy_only=False), keys["offset"].to_numpy()))
    offsets = keys["offset"].to_numpy()[order]
    if (offsets[1:] == offsets[:-1]).any():  # linked members
        ties = [(name, "ascending") for name in ("offset", "linked", "key")]
        order = pc.sort_indices(keys, sort_keys=ties).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    rank += table["number"].to_numpy() >> 32 << 32
    rows = table.select(["sha256", "number", "subject_hash", "subject"]).append_column("first", pa.array(rank))
    rows = rows.filter(pc.equal(table["reason"], ""))
    digests = bytes.fromhex("".join(rows["sha256"].to_pylist()))
    hashes = rows["subject_hash"].to_numpy()
    begins = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)])
    names = rows["subject"].take(pa.array(begins)).to_pylist()
    own = np.array([unit_hash("split", work.config.seed, name) for name in names])
    columns = {
        "place": (np.frombuffer(digests, ">u8").reshape(-1, 4)[:, 0] >> np.uint64(64 - SUBJECT_BITS)).astype(np.int64),
        "sha256": pa.Array.from_buffers(pa.binary(32), len(rows), [None, pa.py_buffer(digests)]),
        "first": rows["first"],
        "number": rows["number"],
        "subject_hash": rows["subject_hash"],
        "split_hash": np.repeat(own, np.diff(np.r_[begins, len(hashes)])),
    }
    return pa.table(columns).cast(CONTENT_SCHEMA)
