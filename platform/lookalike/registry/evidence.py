"""What a decision of the gate rests on: judge, suite, cases and values, so that it can be explained later."""

import hashlib
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookalike import config as configs
from lookalike.documents import decoding
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.gate import BEFORE, Check, GateConfig
from lookalike.evaluation.gate_config import checks_of
from lookalike.evaluation.measurements import SCHEMA, is_position, measured
from lookalike.evaluation.scores import Judge, Scores


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on."""

    gate: dict[str, Any]
    """The checks that were asked for, with the lists of the preset."""
    suite: dict[str, Any]
    """``uri``, ``sha256`` and ``version`` of the suite, its ``split``, and the ``conditions`` of the samples."""
    cases: int
    """Number of measured cases."""
    cases_sha256: str
    """Hash of their ids, one a line in the order of the ids."""
    embedder: str
    """Revision of the embedder behind ``identity``."""
    judge: dict[str, Any] | None = None
    """The judge's calibration: ``images_sha256``, and by metric ``revision`` and ``sha256`` of its values on these
    images; None in older scores."""
    protocols: dict[str, Any] = field(default_factory=dict)
    """How each metric was measured, as in ``scores.json``."""
    measurements_sha256: str | None = None
    """Hash of ``measurements.parquet``; None in older scores."""
    grid_uri: str | None = None
    """The images that were judged, as one picture."""
    estimates: dict[str, Estimate] = field(default_factory=dict)
    """Values with intervals of the metrics of the checks, of their base, and of all positions."""


def evidence_of(scores: Scores, measurements: bytes, where: str, gate: GateConfig, grid_uri: str) -> Evidence:
    """Describe ``scores``, which were proven by ``measurements``, read at ``where``.

    Raises InputError: not a table of measurements.
    """
    with decoding("a table of measurements", where, fix="evaluate the bundle again"):
        table = measured(pq.read_table(io.BytesIO(measurements), schema=SCHEMA, columns=["case", "metric"]))
    cases = sorted(pc.unique(table["case"]).to_pylist())
    return Evidence(
        gate=configs.to_dict(checks_of(gate)) | {"preset": gate.preset},
        suite=asdict(scores.suite)
        | {"split": scores.config.get("split", "validation"), "conditions": scores.conditions},
        cases=len(cases),
        cases_sha256=hashlib.sha256("\n".join(cases).encode()).hexdigest(),
        embedder=scores.embedder,
        judge=None if scores.judge is None else _identity(scores.judge),
        protocols=scores.protocols,
        measurements_sha256=scores.measurements_sha256,
        grid_uri=grid_uri,
        estimates=_shown(scores, gate),
    )


def _identity(judge: Judge) -> dict[str, Any]:
    metrics = {name: {"revision": each.revision, "sha256": each.sha256} for name, each in judge.metrics.items()}
    return {"images_sha256": judge.images_sha256, "metrics": metrics}


def compared_with_base(gate: GateConfig) -> list[str]:
    """Names of the metrics that the gate compares with the base."""
    wanted = checks_of(gate).against_base
    return [metric for each in wanted for metric in (each.metric, each.instead) if metric is not None]


def _shown(scores: Scores, gate: GateConfig) -> dict[str, Estimate]:
    wanted = checks_of(gate)
    names = {bound.metric for bound in wanted.bounds} | {each.metric for each in wanted.comparisons}
    names |= {prefix + metric for metric in compared_with_base(gate) for prefix in ("", BEFORE)}
    names |= {name for name in scores.metrics if is_position(name)}
    return {
        name: scores.metrics[name] for name in sorted(names & scores.metrics.keys()) if _finite(scores.metrics[name])
    }


def _finite(estimate: Estimate) -> bool:
    return all(map(math.isfinite, (estimate.mean, estimate.low, estimate.high)))


def explain(checks: Iterable[Check], evidence: Evidence | None) -> list[str]:
    """Write the checks of a decision, and what it rests on, in lines for a terminal."""
    lines = [f"{'ok  ' if check.passed else 'FAIL'} {check.name:28} {check.why}" for check in checks]
    if evidence is None:
        return [*lines, "judge, suite and cases were not recorded: the decision is of an earlier version of lookalike"]
    if evidence.estimates:
        lines += ["values, with 95 % intervals that resample subjects:"]
    for name, estimate in evidence.estimates.items():
        lines.append(f"     {name:28} {estimate.mean:8.4f} [{estimate.low:.4f}, {estimate.high:.4f}] n={estimate.n}")
    suite = evidence.suite
    judge = "not recorded" if evidence.judge is None else f"sha256 {configs.fingerprint(evidence.judge)[:12]}"
    return [
        *lines,
        f"judge   embedder {evidence.embedder or 'unknown'}; calibration {judge}",
        f"suite   {suite['uri']} version {suite['version']}, split {suite['split']}, sha256 {suite['sha256'][:12]}",
        f"cases   {evidence.cases}, sha256 {evidence.cases_sha256[:12]}; measurements sha256 "
        f"{(evidence.measurements_sha256 or 'not recorded')[:12]}",
        f"gate    preset {evidence.gate['preset']}",
        f"picture {evidence.grid_uri or 'none'}",
    ]
