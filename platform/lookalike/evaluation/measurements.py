"""``measurements.parquet``: the values of each sample and image, and the estimates computed from them."""

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.config import canonical_json
from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError
from lookalike.evaluation.estimates import Estimate, cluster_bootstrap

MEASUREMENTS = "measurements.parquet"
UNREADABLE = "unreadable: "
"""Prefix of the metric of a case whose images cannot be read; the reason follows it."""
SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("case", pa.string()),
        ("subject", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
_HEADER = b"lookalike"
_FIX = "evaluate the bundle again"


@dataclass(frozen=True)
class Measurement:
    """One value of one sample or image."""

    case: str
    """Identity of the sample; with ``metric`` unique in an evaluation."""
    subject: str
    """The subject, by which intervals are clustered."""
    metric: str
    """Name of the metric."""
    value: float
    """The number."""


def to_parquet(table: pa.Table, evaluation: Mapping[str, Any]) -> bytes:
    """Serialise the measurements; ``evaluation`` goes into the header and describes what was measured."""
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_HEADER: canonical_json(evaluation)}), buffer)
    return buffer.getvalue()


def evaluation_of(data: bytes, where: str) -> dict[str, Any] | None:
    """Read the header that :func:`to_parquet` wrote; None for files of earlier versions of this software.

    Raises InputError: not a table of measurements, or its header is damaged.
    """
    with decoding("a table of measurements", where, fix=_FIX):
        header = (pq.read_schema(io.BytesIO(data)).metadata or {}).get(_HEADER)
    return None if header is None else parse_object(header, where, fix=_FIX)


def estimates(data: bytes, seed: int, where: str) -> dict[str, Estimate]:
    """Compute the estimate of each metric from the file's bytes ``data``, which were read from ``where``.

    Raises InputError: not such a file, a member that is missing, or two measurements of one case.
    """
    with decoding("a table of measurements", where, fix=_FIX):
        table = pq.read_table(io.BytesIO(data), schema=SCHEMA)
        rows: list[dict[str, Any]] = measured(table).drop_columns("unit").to_pylist()
    if any(value is None for row in rows for value in row.values()):
        raise InputError("a measurement has no case, subject, metric or value", value=where, fix=_FIX)
    if len({(row["metric"], row["case"]) for row in rows}) < len(rows):
        raise InputError("a case was measured twice", value=where, fix=_FIX)
    return summarise((Measurement(**row) for row in rows), seed)


def measured(table: pa.Table) -> pa.Table:
    """Select the rows of cases that were measured."""
    return table.filter(pc.invert(pc.starts_with(table["metric"], UNREADABLE)))


def with_prefix(measurements: Iterable[Measurement], prefix: str) -> list[Measurement]:
    """Return the rows with ``prefix`` before each metric's name."""
    return [replace(row, metric=prefix + row.metric) for row in measurements]


def summarise(measurements: Iterable[Measurement], seed: int = 0) -> dict[str, Estimate]:
    """Compute mean and interval of each metric, clustered by subject; the order of the rows does not matter.

    An estimate of values that are not finite is NaN.
    """
    by_metric: dict[str, list[Measurement]] = defaultdict(list)
    for row in sorted(measurements, key=lambda row: (row.metric, row.case)):
        by_metric[row.metric].append(row)
    return {metric: _estimate(rows, seed) for metric, rows in by_metric.items()}


def _estimate(rows: list[Measurement], seed: int) -> Estimate:
    values = np.array([row.value for row in rows])
    if not np.isfinite(values).all():
        return Estimate(np.nan, np.nan, np.nan, len(rows))
    return cluster_bootstrap(values, [row.subject for row in rows], seed=seed)
