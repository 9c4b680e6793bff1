"""The lists of a snapshot's tables: which parts and packs it has, with their hashes.

A list (``lists/train-00000.parquet``, :data:`LIST_SCHEMA`) has a row for each part, with the hash of each of its row
groups and of its footer. The manifest has the hash of each list.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.documents import decoding
from lookalike.errors import InputError
from lookalike.storage import Store, manifest_of, read_listed

FORMAT = 2
"""Of snapshots: the value of ``format`` in their manifest."""
GROUP_ROWS = 1024  # rows of a row group; the last one of a part has fewer
BEFORE_GROUPS = 4  # bytes before the first row group of a Parquet file
LIST_FIX = "restore it from a copy, or curate again into another dataset"
_AT_ONCE = 16  # requests
_MAX_SIZE = 1 << 31  # bytes of a part

Kind = Literal["images", "train", "validation"]
"""The tables of a snapshot: its images, and its triplets of one split."""
KINDS: tuple[Kind, ...] = get_args(Kind)

LIST_SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # key of the part below the version's prefix
        ("rows", pa.int64()),
        ("size", pa.int64()),  # bytes
        ("sha256", pa.string()),  # of the part
        ("first_hash", pa.int64()),  # lowest and highest subject hash; null without rows or without the column
        ("last_hash", pa.int64()),
        ("group_ends", pa.list_(pa.int64())),  # byte after each row group
        ("group_sha256s", pa.list_(pa.binary(32))),
        ("footer_sha256", pa.binary(32)),  # of the bytes after the last row group
    ]
)


PACK_SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # key of the pack below the dataset's prefix: shards/<sha256>.tar
        ("rows", pa.int64()),  # images in it that this version uses
        ("size", pa.int64()),  # bytes
        ("sha256", pa.string()),  # of the pack
    ]
)
"""Of the lists of packs (``tables.shards`` of the manifest). A pack may be in two lists, each of which counts its own
images."""


@dataclass(frozen=True)
class Part:
    """One part, as :func:`lookalike.data.parts.write_part` returns it.

    It is a row of :data:`LIST_SCHEMA`, with hashes as hex digits.
    """

    name: str
    rows: int
    size: int
    sha256: str
    first_hash: int | None
    last_hash: int | None
    group_ends: tuple[int, ...]
    group_sha256s: tuple[str, ...]
    footer_sha256: str


def write_list(version: Store, kind: str, number: int, parts: Iterable[Part]) -> dict[str, Any]:
    """Write a list of parts; return its ``name`` and ``sha256`` for the manifest, and the ``rows`` of all parts."""
    name, rows = f"lists/{kind}-{number:05d}.parquet", 0
    columns: list[dict[str, Any]] = []
    for part in parts:
        rows += part.rows
        hashes = [bytes.fromhex(digest) for digest in part.group_sha256s]
        columns.append(asdict(part) | {"group_sha256s": hashes, "footer_sha256": bytes.fromhex(part.footer_sha256)})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(columns, LIST_SCHEMA), buffer, compression="zstd")
    version.write(name, buffer.getvalue())
    return {"name": name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "rows": rows}


def write_pack_list(version: Store, number: int, packs: pa.Table) -> dict[str, Any]:
    """Write a list of packs (:data:`PACK_SCHEMA`); return its ``name``, ``sha256`` and ``rows``: packs."""
    name, buffer = f"lists/shards-{number:05d}.parquet", io.BytesIO()
    pq.write_table(packs.select(PACK_SCHEMA.names).cast(PACK_SCHEMA), buffer, compression="zstd")
    version.write(name, buffer.getvalue())
    return {"name": name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "rows": len(packs)}


def read_pack_lists(version: Store, manifest: dict[str, Any]) -> Iterator[pa.Table]:
    """Yield the lists of packs of a version (:data:`PACK_SCHEMA`), one at a time.

    Raises InputError: the version has another format, or a list has changed.
    """
    check_format(version, manifest)
    for name in manifest["tables"]["shards"]["lists"]:
        data = read_listed(version, name, manifest)
        with decoding("a list of packs", version.uri_of(name), fix=LIST_FIX):
            yield pq.read_table(io.BytesIO(data), schema=PACK_SCHEMA)


def lists_pack(version: Store, pack: str) -> bool:
    """Return whether a version uses the pack with this key; True if its lists cannot be read."""
    try:
        lists = read_pack_lists(version, manifest_of(version))
        return any(pc.any(pc.equal(table["name"], pack)).as_py() for table in lists)
    except (InputError, KeyError, TypeError):
        return True


def read_lists(version: Store, names: Sequence[str], manifest: Mapping[str, Any]) -> pa.Table:
    """Read some lists of a table (:data:`LIST_SCHEMA`); ``files`` of the manifest has their hashes."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tables = list(pool.map(lambda name: _read_list(version, name, manifest), names))
    return pa.concat_tables(tables).combine_chunks() if tables else LIST_SCHEMA.empty_table()


def _read_list(version: Store, name: str, manifest: Mapping[str, Any]) -> pa.Table:
    data = read_listed(version, name, manifest)
    with decoding("a list of the parts of a table", version.uri_of(name), fix=LIST_FIX):
        parts = pq.read_table(io.BytesIO(data), columns=LIST_SCHEMA.names).select(LIST_SCHEMA.names).cast(LIST_SCHEMA)
        if problem := _problem_of(parts.combine_chunks()):
            raise ValueError(problem)
        return parts


def _problem_of(parts: pa.Table) -> str | None:
    """Return why these rows (:data:`LIST_SCHEMA`) cannot describe parts as ``write_part`` writes them."""
    for name in set(LIST_SCHEMA.names) - {"first_hash", "last_hash"}:
        if parts[name].null_count or (pa.types.is_list(parts[name].type) and pc.list_flatten(parts[name]).null_count):
            return f"{name} is null"
    rows, sizes = parts["rows"].to_numpy(), parts["size"].to_numpy()
    if ((rows < 0) | (rows > _MAX_SIZE) | (sizes <= BEFORE_GROUPS) | (sizes > _MAX_SIZE)).any():
        return f"rows or size of a part are not in 0 to {_MAX_SIZE}"
    groups = pc.list_value_length(parts["group_ends"]).to_numpy()
    if not np.array_equal(groups, -(-rows // GROUP_ROWS)):
        return f"group_ends are not those of row groups of {GROUP_ROWS} rows"
    if not np.array_equal(groups, pc.list_value_length(parts["group_sha256s"]).to_numpy()):
        return "group_sha256s are not as many as group_ends"
    ends, of = pc.list_flatten(parts["group_ends"]).to_numpy(), np.repeat(np.arange(len(rows)), groups)
    first = np.diff(of, prepend=-1) > 0
    starts = np.where(first, BEFORE_GROUPS, np.roll(ends, 1))
    if ((ends <= starts) | (ends > sizes[of])).any():
        return "group_ends do not ascend inside their part"
    return None


def check_format(version: Store, manifest: dict[str, Any]) -> None:
    """Raise InputError for a snapshot of another format, with the command that makes it anew."""
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"the snapshot has format {manifest.get('format', 1)}, and this version of lookalike reads format {FORMAT}",
            value=version.uri,
            fix="run python jobs/curate.py run with its --raw and --dataset again: it publishes a new version, and"
            " reads no image again that is indexed",
        )
