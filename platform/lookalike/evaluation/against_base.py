"""Differences of a personal model to its base, paired by case, from the measurements of one evaluation."""

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike.documents import decoding
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.gate import BEFORE
from lookalike.evaluation.measurements import SCHEMA, rows_of
from lookalike.evaluation.paired import paired_difference


def differences_to_base(data: bytes, metrics: Iterable[str], seed: int, where: str) -> dict[str, Estimate]:
    """Estimate METRIC − before/METRIC for each of ``metrics`` that both models have, over the cases of both.

    Args:
        data: bytes of ``measurements.parquet``.
        metrics: names in ``scores.json``, without the prefix.
        seed: of the bootstrap.
        where: names the file in errors.

    Returns:
        For each metric its estimate, whose interval resamples subjects; NaN if a value is not finite. Metrics without
        a common case are left out.

    Raises InputError: not a table of measurements.
    """
    names = list(metrics)
    wanted = pc.field("metric").isin(pa.array([*names, *(BEFORE + name for name in names)], pa.string()))
    with decoding("a table of measurements", where, fix="evaluate the bundle again"):
        table = pq.read_table(io.BytesIO(data), schema=SCHEMA, filters=wanted).drop_columns("unit")
    found = {}
    for metric in names:
        difference = paired_difference(rows_of(table, metric), rows_of(table, BEFORE + metric), seed)
        if difference is not None:
            found[metric] = difference
    return found
