"""Two models on the cases that both have measured: values in pairs, and their mean difference. All in Arrow columns."""

import pyarrow as pa
import pyarrow.compute as pc

from lookalike.errors import ConfigError
from lookalike.evaluation.estimates import Clustered, Estimate, mean_of, share_difference
from lookalike.evaluation.measurements import clustered, position_parts, rows_of
from lookalike.evaluation.metrics import SHARES
from lookalike.evaluation.positions import Paired, position_difference


def paired(ours: pa.Table, theirs: pa.Table) -> Paired | None:
    """Pair the values of one metric by case: ``ours`` and ``theirs`` have columns case, subject, metric and value.

    The metric is the same one, of which ``theirs`` may have another prefix (``before/identity``). None if no case is
    shared. Raises ConfigError: more than one metric, another metric, a case that is measured twice, or a shared case of
    different subjects.
    """
    metrics = [_metric_of(table) for table in (ours, theirs)]
    if len({metric.rpartition("/")[2] for metric in metrics if metric}) > 1:
        raise ConfigError("the two models have no common metric", value=metrics, fix="pass the same metric of both")
    at = pc.index_in(ours["case"], value_set=theirs["case"].combine_chunks())
    shared = ours.filter(at.is_valid())
    if not len(shared):
        return None
    others = theirs.take(at.drop_null())
    shared = shared.append_column("their_value", others["value"]).append_column("their_subject", others["subject"])
    moved = shared.filter(pc.not_equal(shared["subject"], shared["their_subject"]))
    if len(moved):
        first = moved.slice(0, 1).to_pylist()[0]
        raise ConfigError(
            f"case {first['case']} shows another subject in the second evaluation",
            value=f"{first['subject']}, {first['their_subject']}",
            fix="compare evaluations of one suite",
        )
    shared = shared.sort_by("case")
    own = clustered(shared)
    return Paired(own, Clustered(shared["their_value"].to_numpy(), own.index, own.names))


def difference_of(values: Paired, metric: str, seed: int = 0) -> Estimate:
    """Mean of ours - theirs over the shared cases of ``metric``, with a 95 % interval that resamples subjects.

    That of a share is the wider one of this and an exact one (``estimates.share_difference``). ``n`` is the number of
    shared cases.
    """
    if metric.rpartition("/")[2] in SHARES:
        return share_difference(values.ours, values.theirs, seed=seed)
    return mean_of(values.differences, seed=seed)


def paired_difference(ours: pa.Table, theirs: pa.Table, seed: int = 0) -> Estimate | None:
    """:func:`difference_of` for the rows of one metric; None if no case is shared. Raises as :func:`paired` does."""
    values = paired(ours, theirs)
    return None if values is None else difference_of(values, _metric_of(ours), seed)


def paired_positions(ours: pa.Table, theirs: pa.Table, name: str, seed: int = 0) -> tuple[Estimate, int] | None:
    """Difference of the position ``name`` of two evaluations, and the number of their shared subjects.

    ``ours`` and ``theirs`` are all rows of each. None if one of them lacks a part, or shares no case of it.
    """
    images, ceiling, floor = (paired(rows_of(ours, metric), rows_of(theirs, metric)) for metric in position_parts(name))
    if images is None or ceiling is None or floor is None:
        return None
    subjects = set.intersection(*(set(each.ours.names) for each in (images, ceiling, floor)))
    return position_difference(images, ceiling, floor, seed=seed), len(subjects)


def _metric_of(table: pa.Table) -> str:
    """The metric of all rows; empty if there are none. Raises ConfigError: two metrics, or a case twice."""
    names = pc.unique(table["metric"]).to_pylist()
    if len(names) > 1 or pc.count_distinct(table["case"]).as_py() < len(table):
        raise ConfigError(
            "a paired comparison needs one value of one metric per case",
            value=sorted(names),
            fix="pass the rows of one metric of one evaluation",
        )
    return names[0] if names else ""
