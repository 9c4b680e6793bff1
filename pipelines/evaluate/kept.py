"""What an evaluation keeps until its scores are written: the rows of each finished unit, and the generated images.

Rows and images carry the fingerprint of the run that made them, so that a resumed evaluation never measures anything
else. Images stay; the rows are removed when ``scores.json`` is written, since ``measurements.parquet`` has them all.
"""

import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lookalike.config import canonical_json, fingerprint
from lookalike.data.images import ImageError, decode, encode_png
from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError
from lookalike.evaluation.measurements import SCHEMA, UNREADABLE, Measurement
from lookalike.storage import Store, delete_all

log = logging.getLogger(__name__)

UNITS = "units/"
_SEAL = b"seal"
_RUN = "run"  # name of the PNG text
_AT_ONCE = 16  # requests
_AHEAD = 256  # units whose rows are read at once
_ROWS = pa.schema([field for field in SCHEMA if field.name != "unit"])


def write_rows(store: Store, run: str, unit: int, identity: str, rows: Sequence[Measurement]) -> None:
    """Keep the rows of a finished unit, whose cases have the hash ``identity``."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_ROWS)
    seal = canonical_json({"seal": _seal(run, unit, identity, table)})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_SEAL: seal}), buffer)
    store.write(_key(unit), buffer.getvalue())


def read_rows(store: Store, run: str, units: Iterable[tuple[int, str]]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number and the rows of each finished unit (number, hash of its cases) that this run has kept, in order.

    The rows of a few units are in memory at once.
    """
    there = {info.key for info in store.list(UNITS)}
    wanted = ((unit, identity) for unit, identity in units if _key(unit) in there)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while some := list(islice(wanted, _AHEAD)):
            tables = pool.map(lambda each: _read(store, run, *each), some)
            for (unit, _), table in zip(some, tables, strict=True):
                if table is not None:
                    yield unit, table


def remove_rows(store: Store, units: Iterable[int] | None = None) -> None:
    """Remove the kept rows of ``units``, by default of all."""
    delete_all(store, [info.key for info in store.list(UNITS)] if units is None else map(_key, units))


def is_damaged(rows: pa.Table) -> bool:
    """Whether a unit has cases that could not be read, which a repaired suite makes readable."""
    return any(name.startswith(UNREADABLE) for name in rows["metric"].to_pylist())


def write_image(store: Store, run: str, key: str, image: np.ndarray) -> None:
    """Write a generated image, uint8 ``[H, W, 3]``."""
    store.write(key, encode_png(image, {_RUN: run}))


def read_image(store: Store, run: str, key: str) -> np.ndarray | None:
    """Return the image that this run generated, uint8 ``[H, W, 3]``; None if there is none, or it is damaged."""
    if not store.exists(key):
        return None
    data = store.read(key)
    try:
        pixels = decode(data)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as file:
            file.load()
            made_by = getattr(file, "text", {}).get(_RUN)
    except (ImageError, OSError, SyntaxError, ValueError) as error:
        log.warning("%s is generated again: %s", store.uri_of(key), error)
        return None
    return pixels if made_by == run else None


def _key(unit: int) -> str:
    return f"{UNITS}{unit:06d}.parquet"


def _read(store: Store, run: str, unit: int, identity: str) -> pa.Table | None:
    key = _key(unit)
    try:
        data = store.read(key)
        with decoding("rows of an evaluation", store.uri_of(key)):
            table = pq.read_table(io.BytesIO(data))
            seal = parse_object((table.schema.metadata or {}).get(_SEAL, b"{}"), store.uri_of(key), "seal")["seal"]
            table = table.replace_schema_metadata(None).cast(_ROWS)
    except InputError as error:
        log.warning("a unit is measured again: %s", error)
        return None
    if seal != _seal(run, unit, identity, table):
        log.warning("a unit is measured again: %s is of another run, or was changed", store.uri_of(key))
        return None
    return table


def _seal(run: str, unit: int, identity: str, table: pa.Table) -> str:
    rows = [[row["case"], row["subject"], row["metric"], repr(row["value"])] for row in table.to_pylist()]
    return fingerprint([run, unit, identity, rows])
