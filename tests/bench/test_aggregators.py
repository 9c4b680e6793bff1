"""Compare aggregators, and one training phase with two, in miniature: the paper's ablations with `mini`.

    python -m pytest tests/bench/test_aggregators.py -s      # resumes in LOOKALIKE_BENCH_FOLDER

Arms: `last_layer`, `single_lap` and `dla` in two phases (MLLM alone, then MLLM and references, 5 : 2 as in the paper),
and `dla` in a single phase with both from the start. All arms of a seed train on the same samples in the same order,
with the same noise and number of steps; each seed has its own. Each arm is a run of pipelines/train in this process
(``workers.num_workers=0``, ``keep_samples``): it resumes from its last checkpoint, computes on a GPU if there is one,
and needs neither Ray nor DeepSpeed nor MLflow. Rendering and curating the data needs Ray; a machine without it is
given the folder with the data set and the probe.

On one GPU: ``LOOKALIKE_BENCH_FOLDER=folder python -m pytest tests/bench/test_aggregators.py -s``, 12 arms of 100,000
samples. On two cores: ``LOOKALIKE_BENCH_ARMS=last_layer,dla LOOKALIKE_BENCH_SEEDS=1 LOOKALIKE_BENCH_MINUTES=30 …``.

    LOOKALIKE_BENCH_ARMS      names of arms, separated by commas; by default all
    LOOKALIKE_BENCH_SEEDS     number of seeds, by default 3
    LOOKALIKE_BENCH_SAMPLES   training samples of an arm; by default 100,000 on a GPU, 4,000 without
    LOOKALIKE_BENCH_MINUTES   instead of these: minutes of training for all arms, at the measured speed
    LOOKALIKE_BENCH_SUBJECTS  subjects of the world, by default 600; 15 % are held out
    LOOKALIKE_BENCH_START     base or scratch

Start: from the shipped base's DiT with a fresh aggregator of each kind (``base``), by default below 50,000 samples: the
DiT can denoise, so that a few thousand samples show what it gets from the tokens, where from scratch images stay
mosaics. It learned from a `dla`, with two phases: tokens of that form suit it, and a single phase does not have to
teach it to work without references, so `base` is partial to `dla` and hides part of what the first phase gives. With
more samples DiT and aggregator start from the seed (``scratch``), which favours no arm.

Judges: the held-out loss with both conditions and with the MLLM alone, paired by sample and noise; the probe
(tests/bench/probe.py) on images of held-out subjects, by the paper's schedule and with both conditions throughout. The
intervals are over seeds and subjects (tests/bench/verdicts.py). An ordering is confirmed or refuted if its whole
interval has the sign of the paper's or the opposite one, else undecided, as it always is with one seed. Writes
results/aggregators.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.measurements import MEASUREMENTS
from lookalike.evaluation.scores import SCORES as SCORES_FILE
from lookalike.models.vae import load_vae
from tests.bench.arms import CHOSEN, CUDA, JUDGED, RUNS, SCHEDULES, SEEDS, WORLD, Lab, Run, batch_of
from tests.bench.measured import keep
from tests.bench.rendered import Truth, rounded, trained_probe
from tests.bench.verdicts import CONFIRMED, REFUTED, UNDECIDED, crossed_mean, verdict

SYSTEMS = {  # the paper's row -> arm, schedule
    "last layer": ("last_layer", "paper"),
    "single LAP": ("single_lap", "paper"),
    "DLA, two-stage": ("dla", "paper"),
    "DLA, single-stage": ("dla-single-stage", "both"),
    "DLA, single-stage + stages": ("dla-single-stage", "paper"),
}
PAPER = {  # DINO-I, CLIP-T
    "last layer": (0.6566, 0.2893),
    "single LAP": (0.7524, 0.2878),
    "DLA, two-stage": (0.7482, 0.3010),
    "DLA, single-stage": (0.7184, 0.2971),
    "DLA, single-stage + stages": (0.5763, 0.2995),
}
ORDERINGS = {  # the lower and the higher system of the paper's table -> which of its metrics
    ("last layer", "single LAP"): ["identity"],
    ("last layer", "DLA, two-stage"): ["identity", "prompt"],
    ("single LAP", "DLA, two-stage"): ["prompt"],
    ("DLA, single-stage", "DLA, two-stage"): ["identity", "prompt"],
    ("DLA, single-stage + stages", "DLA, two-stage"): ["identity", "prompt"],
    ("DLA, single-stage + stages", "DLA, single-stage"): ["identity"],
}
SCORES = {  # the paper's metric -> ours, with the sign of "better"
    "identity": {"probe: identity": 1, "identity": 1},
    "prompt": {"probe: place": 1},
    "loss": {"loss_right": -1, "mllm_only/loss_right": -1},
}

pytestmark = pytest.mark.timeout(14_400)


@pytest.fixture(scope="module")
def lab(bench_folder: Path) -> Lab:
    return Lab(bench_folder)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_aggregators_are_trained(run: Run, lab: Lab) -> None:
    assert lab.make(run).exists(SCORES_FILE)


def test_aggregators_are_compared(lab: Lab) -> None:
    torch.set_num_threads(1)
    systems = {name: pair for name, pair in SYSTEMS.items() if pair[0] in CHOSEN}
    base = lab.folder(RUNS[0]) / "run" / "initial"
    probe = trained_probe(lab.bench_folder, load_vae(base))
    truth = Truth(lab.data, WORLD, probe, base, "validation")
    values = {
        name: [_by_subject(lab, Run(arm, seed), schedule, truth) for seed in range(SEEDS)]
        for name, (arm, schedule) in systems.items()
    }
    record = {
        "command": f"LOOKALIKE_BENCH_ARMS={','.join(CHOSEN)} LOOKALIKE_BENCH_SEEDS={SEEDS}"
        f" LOOKALIKE_BENCH_SAMPLES={lab.samples} python -m pytest tests/bench/test_aggregators.py -s",
        "samples": lab.samples,
        "batch": batch_of(lab.samples),
        "seeds": SEEDS,
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "subjects with images": JUDGED,
        "probe": truth.judge.own_error(),
        "trained parameters of the aggregator": {arm: lab.parameters(arm) for arm in CHOSEN},
        "training loss of the last steps": {str(run): lab.last_loss(run) for run in RUNS},
        "table": {
            name: {score: rounded(crossed_mean(rows)) for score, rows in _stacked(runs).items()}
            for name, runs in values.items()
        },
        "paper": {name: PAPER[name] for name in systems},
        "orderings": _orderings(values, SEEDS),
    }
    keep("aggregators", record, f"{lab.start}, {lab.samples} samples, {SEEDS} seeds")


def test_crossed_intervals_cover_seeds_and_subjects() -> None:
    """95 % intervals of a mean over 3 seeds and 30 subjects with effects of both; without training, in a second."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        table = 1 + rng.normal(0, 0.5, (3, 1)) + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, 0.5, (3, 30))
        found = crossed_mean(table)
        covered.append(found.low < 1 < found.high)
    assert 0.92 <= np.mean(covered) <= 1.0
    one_seed = crossed_mean(rng.normal(1, 0.5, (1, 30)))
    assert one_seed.high - one_seed.low < 0.6
    assert verdict([Estimate(0.2, 0.1, 0.3, 9)], 1) == CONFIRMED
    assert verdict([Estimate(0.2, 0.1, 0.3, 9), Estimate(-0.2, -0.3, -0.1, 9)], 1) == REFUTED
    assert verdict([Estimate(0.2, 0.1, 0.3, 9), Estimate(0.2, -0.1, 0.3, 9)], 1) == UNDECIDED
    assert verdict([Estimate(np.nan, np.nan, np.nan, 0)], -1) == UNDECIDED


def test_orderings_of_made_up_scores() -> None:
    """As the paper's where a system's scores are higher in all seeds; without training, in a second."""
    rng, means = np.random.default_rng(0), dict(zip(SYSTEMS, (0.5, 0.7, 0.7, 0.6, 0.4), strict=True))
    names = [name for scores in SCORES.values() for name in scores]
    values = {
        system: [{name: mean + rng.normal(0, 0.01, 40) for name in names} for _ in range(3)]
        for system, mean in means.items()
    }
    found = {name: row["verdict"] for name, row in _orderings(values, seeds=3).items()}
    assert found["last layer < single LAP in identity, by probe: identity"] == CONFIRMED
    assert found["single LAP < DLA, two-stage in prompt, by probe: place"] == UNDECIDED
    assert found["last layer < DLA, two-stage in loss, by loss_right"] == REFUTED  # a higher loss is worse
    assert {row["verdict"] for row in _orderings(values, seeds=1).values()} == {UNDECIDED}


def _by_subject(lab: Lab, run: Run, schedule: str, truth: Truth) -> dict[str, np.ndarray]:
    """Means of every score over the cases of each subject, in the order of their names."""
    evaluation = lab.make(run)
    table = pq.read_table(pa.BufferReader(evaluation.read(MEASUREMENTS))).to_pylist()
    prefix = "" if schedule == SCHEDULES[0] else f"{schedule}/"
    names = {
        "loss_right": "loss_right",
        "mllm_only/loss_right": "mllm_only/loss_right",
        f"{prefix}identity": "identity",
    }
    rows = [(names[row["metric"]], row["subject"], row["value"]) for row in table if row["metric"] in names]
    cases = sorted(row["case"] for row in table if row["metric"] == f"{prefix}identity")
    scores = truth(evaluation.child(f"images/{schedule}"), cases)
    for score, values in scores.items():
        rows += [(f"probe: {score}", who, value) for who, value in zip(truth.subjects(cases), values, strict=True)]
    means: dict[str, dict[str, list[float]]] = {}
    for score, subject, value in rows:
        if not np.isnan(value):
            means.setdefault(score, {}).setdefault(subject, []).append(value)
    return {score: np.array([np.mean(found[who]) for who in sorted(found)]) for score, found in means.items()}


def _stacked(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """By score ``[runs, subjects]``."""
    return {score: np.stack([run[score] for run in runs]) for score in runs[0]}


def _orderings(values: Mapping[str, Sequence[Mapping[str, np.ndarray]]], seeds: int) -> dict[str, Any]:
    """The paper's orderings, and those of the held-out loss, by our scores: difference and verdict."""
    found: dict[str, Any] = {}
    for (lower, higher), claimed in ORDERINGS.items():
        if lower not in values or higher not in values:
            continue
        before, after = _stacked(values[lower]), _stacked(values[higher])
        paper = dict(zip(("identity", "prompt"), zip(PAPER[lower], PAPER[higher], strict=True), strict=True))
        for metric in (*claimed, "loss"):
            for score, sign in SCORES[metric].items():
                difference = crossed_mean(after[score] - before[score])
                found[f"{lower} < {higher} in {metric}, by {score}"] = {
                    "difference": rounded(difference),
                    "paper": paper.get(metric),
                    "verdict": verdict([difference], sign) if seeds > 1 else UNDECIDED,
                }
    return found
