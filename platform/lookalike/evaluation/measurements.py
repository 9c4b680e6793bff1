"""``measurements.parquet``: the values of each sample and image, and the estimates computed from them."""

import io
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.config import canonical_json
from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError
from lookalike.evaluation.estimates import Clustered, Estimate, mean_of, share_of
from lookalike.evaluation.positions import position

MEASUREMENTS = "measurements.parquet"
UNREADABLE = "unreadable: "
"""Prefix of the metric of a case whose images cannot be read; the reason follows it."""
REAL = frozenset({"ceiling", "floor", "hard_floor"})
"""Prefixes of metrics of real photos, measured as if they were generated: of the same subject, of another one, and of
another one of the same class."""
POSITIONS = {"position": "floor", "hard_position": "hard_floor"}
"""Prefix of a position between a floor and the ceiling -> the floor."""
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


def estimates(data: bytes, seed: int, where: str, shares: Collection[str] = ()) -> dict[str, Estimate]:
    """Compute the estimate of each metric, and of each position, from the file's bytes ``data``, read from ``where``.

    ``shares``: names of metrics, without prefix, whose values are shares, with intervals as such
    (``lookalike.evaluation.metrics.SHARES``).

    Raises InputError: not such a file, a member that is missing, two measurements of one case, or a measured metric
    with the name of a position.
    """
    with decoding("a table of measurements", where, fix=_FIX):
        table = measured(pq.read_table(io.BytesIO(data), schema=SCHEMA)).drop_columns("unit")
    if any(column.null_count for column in table.columns):
        raise InputError("a measurement has no case, subject, metric or value", value=where, fix=_FIX)
    return _summarise(table, seed, where, shares)


def measured(table: pa.Table) -> pa.Table:
    """Select the rows of cases that were measured."""
    return table.filter(pc.invert(pc.starts_with(table["metric"], UNREADABLE)))


def with_prefix(measurements: Iterable[Measurement], prefix: str) -> list[Measurement]:
    """Return the rows with ``prefix`` before each metric's name."""
    return [replace(row, metric=prefix + row.metric) for row in measurements]


def summarise(measurements: Iterable[Measurement], seed: int = 0, shares: Collection[str] = ()) -> dict[str, Estimate]:
    """Compute mean and interval of each metric, clustered by subject; the order of the rows does not matter.

    For each metric NAME of generated images, of which real photos were measured too (``ceiling/NAME``, ``floor/NAME``,
    ``hard_floor/NAME``), there is also ``position/NAME`` (and ``hard_position/NAME``), after the same prefix:
    ``before/both/position/NAME``. See :func:`~lookalike.evaluation.positions.position`. An estimate of values that are
    not finite is NaN.

    Raises InputError for two measurements of one case, or a measured metric with the name of a position.
    """
    return _summarise(table_of(measurements), seed, "measurements", shares)


def table_of(measurements: Iterable[Measurement]) -> pa.Table:
    """The rows as a table with columns case, subject, metric and value."""
    rows = list(measurements)
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names if name != "unit"}
    return pa.table(columns, schema=SCHEMA.remove(0))


def rows_of(table: pa.Table, metric: str) -> pa.Table:
    """Select the rows of one metric."""
    return table.filter(pc.equal(table["metric"], metric))


def above_ceiling(metrics: Mapping[str, Estimate]) -> list[str]:
    """Names of the positions whose whole interval is above 1, sorted: ``before/position/identity``.

    Generated images that resemble the photos more than other real photos do are likely to be pasted from them.
    """
    return sorted(name for name, estimate in metrics.items() if is_position(name) and estimate.low > 1)


def position_parts(name: str) -> tuple[str, str, str]:
    """The metrics of images, ceiling and floor that the position ``name`` is computed from."""
    prefix, _, leaf = name.rpartition("/")
    before, slash, kind = prefix.rpartition("/")
    return f"{before}{slash}{leaf}", f"ceiling/{leaf}", f"{POSITIONS[kind]}/{leaf}"


def position_problem(metrics: Mapping[str, Estimate], name: str) -> str | None:
    """The reason why the position ``name`` has no value, in words; None if it has one."""
    images, ceiling, floor = position_parts(name)
    missing = [part for part in (images, ceiling, floor) if part not in metrics]
    if missing or name not in metrics:
        return f"{' and '.join(missing or [name])} was not measured"
    if not math.isnan(metrics[name].mean):
        return None
    if metrics[name].n == 0:
        return f"no subject has all of {images}, {ceiling} and {floor}"
    unknown = [part for part in (images, ceiling, floor) if math.isnan(metrics[part].mean)]
    if unknown:
        return f"a value of {unknown[0]} is not finite"
    shown = {part: "{0.mean:.3g} ({0.low:.3g} to {0.high:.3g})".format(metrics[part]) for part in (ceiling, floor)}
    return (
        f"real photos of one subject ({ceiling} {shown[ceiling]}) are not clearly more alike than those of two"
        f" ({floor} {shown[floor]})"
    )


def _summarise(table: pa.Table, seed: int, where: str, shares: Collection[str]) -> dict[str, Estimate]:
    """:func:`summarise` for the columns of rows; one metric at a time, so that no other copy of them exists."""
    samples: dict[str, Clustered] = {}
    for metric in sorted(pc.unique(table["metric"]).to_pylist()):
        if is_position(metric):
            raise InputError(f"{metric} is not measured but computed from other metrics", value=where, fix=_FIX)
        rows = rows_of(table, metric).sort_by("case")
        repeated = pc.index(pc.equal(rows["case"][1:], rows["case"][:-1]), True).as_py()
        if repeated >= 0:
            raise InputError(f"a case was measured twice: {metric} of {rows['case'][repeated]}", value=where, fix=_FIX)
        samples[metric] = clustered(rows)
    found = {
        metric: (share_of if metric.rpartition("/")[2] in shares else mean_of)(part, seed=seed)
        for metric, part in samples.items()
    }
    return found | {
        name: position(samples[metric], samples[f"ceiling/{leaf}"], samples[floor], seed=seed)
        for metric in samples
        for name, leaf, floor in _positions(metric)
        if f"ceiling/{leaf}" in samples and floor in samples
    }


def clustered(rows: pa.Table) -> Clustered:
    """The values of ``rows``, with columns subject and value, by subject."""
    subjects = rows["subject"].combine_chunks().dictionary_encode()
    names = np.array(subjects.dictionary.to_pylist(), dtype=object)
    order = np.argsort(names)
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    return Clustered(rows["value"].to_numpy(), ranks[subjects.indices.to_numpy()], names[order])


def _positions(metric: str) -> list[tuple[str, str, str]]:
    """Of a metric of generated images: the name of each position, the metric's own name, and the floor's."""
    prefix, slash, leaf = metric.rpartition("/")
    if REAL & set(prefix.split("/")):
        return []
    return [(f"{prefix}{slash}{kind}/{leaf}", leaf, f"{floor}/{leaf}") for kind, floor in POSITIONS.items()]


def is_position(name: str) -> bool:
    """Whether ``name`` is that of a position between a floor and the ceiling: ``before/position/identity``."""
    return bool(POSITIONS.keys() & set(name.split("/")[:-1]))
