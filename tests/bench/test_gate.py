"""Calibrate the gate for personal models: which adapters it accepts, and how sure that is.

    python -m pytest tests/bench/test_gate.py -s      # makes the parts that are missing, then judges all

Personal adapters of sample-world subjects are trained on photos of which two are held out, and scored on these alone:
20 good ones, 20 untrained, 20 overfitted (four photos learned by heart), 20 trained on another subject's photos, 20
trained on two subjects as one. Good is said by the sample world's truth (tests/bench/truth.py): a probe, which never
saw these subjects, finds the images nearer to the subject's real photos than the base's, and in the place that the
prompt asks for as often, but for one image in eight. The first 20 of up to 30 candidates that are good count.

The shipped base leaves no room for that on photos of its own world: with two references its images are as near to the
subject as real photos are. So each subject is photographed by a camera of its own, which swaps the colour channels: a
world that the base does not know, as a customer's is, in which the truth is known.

The thresholds of the preset ``personal`` for position and copies are fitted on four fifths of the subjects and judge
the last fifth, five times. Each adapter is a part, whose record, what the gate sees of it and the truth, is kept in
results/gate-parts, so that the bench goes on where it was stopped, on any machine; LOOKALIKE_BENCH_PARTS=2 makes only
those of the first two subjects. Photos and adapters lie in LOOKALIKE_BENCH_FOLDER. Writes results/gate.json.
"""

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.evaluation.against_base import differences_to_base
from lookalike.evaluation.estimates import Estimate, binomial_interval
from lookalike.evaluation.gate import Ceiling, Decision, Floor, GateConfig, decide
from lookalike.evaluation.gate_config import PRESETS
from lookalike.evaluation.measurements import MEASUREMENTS
from lookalike.evaluation.scores import SCORES, Scores, Source
from lookalike.storage import open_store
from tests.bench.adapters import CANDIDATES, KINDS, OF_EACH, Lab, Part, all_parts
from tests.bench.measured import RESULTS, keep
from tests.bench.truth import Truth

FOLDS = 5
_ESTIMATES = ("metrics", "differences")
AT_ONCE = 5  # subjects whose data sets are made together
PERSONAL = GateConfig(preset="personal")
POSITIONS = [round(float(value), 3) for value in np.linspace(-0.2, 0.9, 45)]
COPIES = [0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 1.01]
PARTS = [part for part in all_parts() if part.number < int(os.environ.get("LOOKALIKE_BENCH_PARTS", "1000"))]

pytestmark = pytest.mark.timeout(14_400)


@dataclass(frozen=True)
class Judged:
    """A part with what the gate sees of it."""

    part: Part
    scores: Scores
    differences: dict[str, Estimate]
    truth: dict[str, Any]
    seconds: dict[str, float]

    def accepted(self, gate: GateConfig) -> bool:
        """Whether the gate promotes it."""
        return self.decision(gate).passed

    def decision(self, gate: GateConfig) -> Decision:
        """What the gate says about it."""
        return decide(self.scores, None, gate, self.differences)


@pytest.fixture(scope="module")
def lab(bench_folder: Path) -> Lab:
    return Lab(bench_folder)


@pytest.fixture(scope="module")
def judge(lab: Lab, bench_folder: Path) -> Truth:
    return Truth(lab, bench_folder)


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_gate_calibration_part(part: Part, request: pytest.FixtureRequest) -> None:
    if _record(part).exists() or not _is_needed(part):
        return
    lab, judge = request.getfixturevalue("lab"), request.getfixturevalue("judge")
    first = part.number // AT_ONCE * AT_ONCE
    lab.prepare(range(first, min(first + AT_ONCE, CANDIDATES)), bad=part.number < OF_EACH)
    _keep(part, lab.make(part), judge(part), judge.own_error([part.number]))
    print(f"{part}: {_read(part)}")


def test_gate_calibration() -> None:
    judged = [_read(part) for part in PARTS if _record(part).exists()]
    missing = [str(part) for part in PARTS if not _record(part).exists() and _is_needed(part)]
    candidates = [item for item in judged if item.part.kind == "good"]
    judged = [item for item in judged if item.part.kind != "good" or item.truth["good"]]
    judged = [item for kind in KINDS for item in [each for each in judged if each.part.kind == kind][:OF_EACH]]
    accepted, thresholds = _cross_fitted(judged)
    table = {kind: _row([accepted[item.part] for item in judged if item.part.kind == kind]) for kind in KINDS}
    record = {
        "parts not made": len(missing),  # what follows is of the others
        "accepted": table,
        "thresholds of the folds": thresholds,
        "thresholds of all": _fitted(judged)[1],
        "by the preset": {
            kind: _row([item.accepted(PERSONAL) for item in judged if item.part.kind == kind]) for kind in KINDS
        },
        "refused by the preset for": {
            str(item.part): [check.name for check in item.decision(PERSONAL).checks if not check.passed]
            for item in judged
        },
        "candidates that are good": f"{sum(item.truth['good'] for item in candidates)} of {len(candidates)}",
        "seconds of all parts": round(sum(sum(item.seconds.values()) for item in judged)),
    }
    keep("gate", record)
    assert not missing, f"these parts are not made: {missing[:5]} and {len(missing)} in all"
    assert all(row["of"] == OF_EACH for row in table.values()), "not all adapters are made: LOOKALIKE_BENCH_PARTS"
    assert table["good"]["accepted"] >= 19
    assert all(table[kind]["accepted"] <= 1 for kind in KINDS if kind != "good")


def test_gate_calibration_separates_kinds_that_are_apart() -> None:
    """The fit on made-up scores; without training, in a second."""
    rng = np.random.default_rng(0)
    judged = [
        Judged(Part(kind, number), _made_up(position + rng.normal(0, 0.05), copies), {}, {"good": kind == "good"}, {})
        for kind, position, copies in (("good", 0.6, 0.0), ("untrained", 0.2, 0.0), ("overfitted", 0.7, 0.8))
        for number in range(OF_EACH)
    ]
    accepted, thresholds = _cross_fitted(judged)
    assert {part.kind for part, passed in accepted.items() if passed} == {"good"}
    assert sum(accepted.values()) >= OF_EACH - 1
    assert all(0.3 < values["position/identity"] < 0.5 and values["copying"] < 0.8 for values in thresholds)
    assert _row([True] * 19 + [False])["95 %"] == [0.751, 0.999]


def _made_up(position: float, copies: float) -> Scores:
    """Scores that pass all checks but perhaps those of position and copies."""
    better = {"loss_gap": 0.2, "loss_right": 0.5, "before/loss_right": 0.9, "identity": 0.6, "before/identity": 0.5}
    means = {**better, "clip_t": 0.3, "before/clip_t": 0.3, "position/identity": position, "copying": copies}
    metrics = {name: Estimate(mean, mean - 0.1, mean + 0.1, 8) for name, mean in means.items()}
    return Scores(Source("file:///b", "b" * 64), Source("file:///s", "s" * 64, 1), "right", metrics)


def _is_needed(part: Part) -> bool:
    """Whether a part is made: a candidate is not once there are enough good ones."""
    if part.kind != "good" or part.number < OF_EACH:
        return True
    earlier = [Part("good", number) for number in range(part.number)]
    return sum(_read(each).truth["good"] for each in earlier if _record(each).exists()) < OF_EACH


def _record(part: Part) -> Path:
    return RESULTS / "gate-parts" / f"{part}.json"


def _keep(part: Part, made: dict[str, Any], truth: dict[str, Any], probe: dict[str, float]) -> None:
    """Write the record of a part: estimates of metrics and of paired differences, and the truth."""
    store = open_store(made["scores"])
    measurements, where = store.read(MEASUREMENTS), store.uri_of(MEASUREMENTS)
    scores = Scores.from_json(store.read(SCORES), store.uri_of(SCORES)).proven(measurements, where)
    names = {name for name in scores.metrics if f"before/{name}" in scores.metrics}
    record = {
        "metrics": {name: _plain(estimate) for name, estimate in scores.metrics.items()},
        "differences": {
            name: _plain(estimate)
            for name, estimate in differences_to_base(measurements, sorted(names), 0, where).items()
        },
        "truth": truth,
        "probe": probe,
        "seconds": {name: round(value) for name, value in made["seconds"].items()},
    }
    _record(part).parent.mkdir(exist_ok=True)
    _record(part).write_text(json.dumps(record, sort_keys=True) + "\n")


def _plain(estimate: Estimate) -> list[float]:
    return [*(round(value, 5) for value in (estimate.mean, estimate.low, estimate.high)), estimate.n]


def _read(part: Part) -> Judged:
    record = json.loads(_record(part).read_text())
    found = {name: {key: Estimate(*values) for key, values in record[name].items()} for name in _ESTIMATES}
    scores = Scores(Source("file:///b", "b" * 64), Source("file:///s", "s" * 64, 1), "right", found["metrics"])
    return Judged(part, scores, found["differences"], record["truth"], record["seconds"])


def _gate(position: float, copies: float) -> GateConfig:
    """The preset with other thresholds of position and copies."""
    preset = PRESETS["personal"]
    floors = [replace(each, above=position) if each.metric.startswith("position/") else each for each in preset.floors]
    ceilings = [replace(each, below=copies) if each.metric == "copying" else each for each in preset.ceilings]
    assert any(isinstance(each, Floor) and each.above == position for each in floors)
    assert any(isinstance(each, Ceiling) and each.below == copies for each in ceilings)
    return replace(PERSONAL, floors=floors, ceilings=ceilings)


def _fitted(judged: Sequence[Judged]) -> tuple[GateConfig, dict[str, float]]:
    """The thresholds that accept most good adapters and fewest bad ones; of equal ones those in the middle."""
    found: dict[tuple[float, float], int] = {}
    for position, copies in itertools.product(POSITIONS, COPIES):
        gate = _gate(position, copies)
        found[position, copies] = sum((1 if j.part.kind == "good" else -1) * j.accepted(gate) for j in judged)
    best = [pair for pair, value in found.items() if value == max(found.values())]
    copies = sorted({pair[1] for pair in best})[(len({pair[1] for pair in best}) - 1) // 2]
    positions = sorted(pair[0] for pair in best if pair[1] == copies)
    position = positions[(len(positions) - 1) // 2]
    return _gate(position, copies), {"position/identity": position, "copying": copies}


def _cross_fitted(judged: Sequence[Judged]) -> tuple[dict[Part, bool], list[dict[str, float]]]:
    """Whether each part is accepted by thresholds that were fitted without its subject; and these thresholds."""
    accepted: dict[Part, bool] = {}
    thresholds = []
    for fold in range(FOLDS):
        gate, values = _fitted([item for item in judged if item.part.number % FOLDS != fold])
        thresholds.append(values)
        accepted |= {item.part: item.accepted(gate) for item in judged if item.part.number % FOLDS == fold}
    return accepted, thresholds


def _row(accepted: Iterable[bool]) -> dict[str, Any]:
    values = list(accepted)
    if not values:
        return {"accepted": 0, "of": 0, "95 %": None}
    low, high = binomial_interval(sum(values), len(values))
    return {"accepted": sum(values), "of": len(values), "95 %": [round(low, 3), round(high, 3)]}
