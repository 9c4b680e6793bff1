"""``measurements.parquet``: the values of each sample and image, and the estimates computed from them."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.config import canonical_json
from lookalike.documents import decoding, parse_object
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.estimates import Clustered, Estimate, cluster_bootstrap, mean_of, position

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


def estimates(data: bytes, seed: int, where: str) -> dict[str, Estimate]:
    """Compute the estimate of each metric, and of each position, from the file's bytes ``data``, read from ``where``.

    Raises InputError: not such a file, a member that is missing, two measurements of one case, or a measured metric
    with the name of a position.
    """
    with decoding("a table of measurements", where, fix=_FIX):
        table = measured(pq.read_table(io.BytesIO(data), schema=SCHEMA)).drop_columns("unit")
    if any(column.null_count for column in table.columns):
        raise InputError("a measurement has no case, subject, metric or value", value=where, fix=_FIX)
    return _summarise(table, seed, where)


def measured(table: pa.Table) -> pa.Table:
    """Select the rows of cases that were measured."""
    return table.filter(pc.invert(pc.starts_with(table["metric"], UNREADABLE)))


def with_prefix(measurements: Iterable[Measurement], prefix: str) -> list[Measurement]:
    """Return the rows with ``prefix`` before each metric's name."""
    return [replace(row, metric=prefix + row.metric) for row in measurements]


def summarise(measurements: Iterable[Measurement], seed: int = 0) -> dict[str, Estimate]:
    """Compute mean and interval of each metric, clustered by subject; the order of the rows does not matter.

    For each metric NAME of generated images, of which real photos were measured too (``ceiling/NAME``, ``floor/NAME``,
    ``hard_floor/NAME``), there is also ``position/NAME`` (and ``hard_position/NAME``), after the same prefix:
    ``before/both/position/NAME``. See :func:`~lookalike.evaluation.estimates.position`. An estimate of values that are
    not finite is NaN.

    Raises InputError for two measurements of one case, or a measured metric with the name of a position.
    """
    rows = list(measurements)
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names if name != "unit"}
    return _summarise(pa.table(columns, schema=SCHEMA.remove(0)), seed, "measurements")


def above_ceiling(metrics: Mapping[str, Estimate]) -> list[str]:
    """Names of the positions whose whole interval is above 1, sorted: ``before/position/identity``.

    Generated images that resemble the photos more than other real photos do are likely to be pasted from them.
    """
    return sorted(name for name, estimate in metrics.items() if _is_position(name) and estimate.low > 1)


def position_problem(metrics: Mapping[str, Estimate], name: str) -> str | None:
    """The reason why the position ``name`` has no value, in words; None if it has one."""
    prefix, _, leaf = name.rpartition("/")
    before, slash, kind = prefix.rpartition("/")
    images, ceiling, floor = f"{before}{slash}{leaf}", f"ceiling/{leaf}", f"{POSITIONS[kind]}/{leaf}"
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


def paired_difference(a: Sequence[Measurement], b: Sequence[Measurement], seed: int = 0) -> Estimate:
    """Mean of ``a`` - ``b`` over the cases that both have, with an interval that resamples subjects.

    Both hold one metric, the same one, of which ``b`` may have another prefix (``before/identity``). ``n`` is the
    number of shared cases. Raises ConfigError: more than one metric, another metric, a case that is measured twice, a
    shared case of different subjects, or no shared case.
    """
    ours, theirs = _by_case(a), _by_case(b)
    leaves = {row.metric.rpartition("/")[2] for row in (*a[:1], *b[:1])}
    shared = sorted(ours.keys() & theirs.keys())
    if len(leaves) != 1 or not shared:
        raise ConfigError(
            "the two models share no case of one metric",
            value=f"{sorted(leaves)}, {len(ours)} and {len(theirs)} cases",
            fix="pass the same metric of two evaluations of one suite",
        )
    moved = [case for case in shared if ours[case].subject != theirs[case].subject]
    if moved:
        raise ConfigError(
            f"case {moved[0]} shows another subject in the second evaluation",
            value=f"{ours[moved[0]].subject}, {theirs[moved[0]].subject}",
            fix="compare evaluations of one suite",
        )
    differences = np.array([ours[case].value - theirs[case].value for case in shared])
    return cluster_bootstrap(differences, [ours[case].subject for case in shared], seed=seed)


def _by_case(rows: Sequence[Measurement]) -> dict[str, Measurement]:
    by_case = {row.case: row for row in rows}
    if len({row.metric for row in rows}) > 1 or len(by_case) < len(rows):
        raise ConfigError(
            "a paired comparison needs one value of one metric per case",
            value=sorted({row.metric for row in rows}),
            fix="pass the rows of one metric of one evaluation",
        )
    return by_case


def _summarise(table: pa.Table, seed: int, where: str) -> dict[str, Estimate]:
    """:func:`summarise` for the columns of rows; one metric at a time, so that no other copy of them exists."""
    samples: dict[str, Clustered] = {}
    for metric in sorted(pc.unique(table["metric"]).to_pylist()):
        if _is_position(metric):
            raise InputError(f"{metric} is not measured but computed from other metrics", value=where, fix=_FIX)
        rows = table.filter(pc.equal(table["metric"], metric)).sort_by("case")
        repeated = pc.index(pc.equal(rows["case"][1:], rows["case"][:-1]), True).as_py()
        if repeated >= 0:
            raise InputError(f"a case was measured twice: {metric} of {rows['case'][repeated]}", value=where, fix=_FIX)
        samples[metric] = _clustered(rows)
    found = {metric: mean_of(part, seed=seed) for metric, part in samples.items()}
    return found | {
        name: position(samples[metric], samples[f"ceiling/{leaf}"], samples[floor], seed=seed)
        for metric in samples
        for name, leaf, floor in _positions(metric)
        if f"ceiling/{leaf}" in samples and floor in samples
    }


def _clustered(rows: pa.Table) -> Clustered:
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


def _is_position(name: str) -> bool:
    return bool(POSITIONS.keys() & set(name.split("/")[:-1]))
