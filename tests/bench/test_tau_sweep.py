"""Sweep the thresholds of the denoising schedule on the shipped `mini`: identity, prompt following and copying.

    python -m pytest tests/bench/test_tau_sweep.py -s        # resumes in LOOKALIKE_BENCH_FOLDER

The paper's table (its ablation of tau1/tau2) has four schedules, ordered by how early the references take over: with
each the identity is higher (DINO-I) and the prompt is followed less (CLIP-T). Here one evaluation (pipelines/evaluate)
generates the same cases by all of them and by more: a held-out subject, one reference, a caption that names class,
place and view, and the same noise for each schedule. Colours, pattern and shape can come from the reference alone.

The truth is the probe's (tests/bench/probe.py): likeness to the subject's other photos, and whether the background is
the prompted one, which it tells in real photos with an accuracy of 0.99. The evaluation's own metrics stand beside it;
CLIP-T cannot be measured, since no CLIP model ships. An image copies if it repeats the reference's pixels (``copying``)
or shows the reference's background where the prompt asks for another.

Each change from one schedule to the next is paired by case, with a 95 % interval that resamples subjects. A claim of
the paper's table is confirmed if every change along its four schedules has the claimed sign with its whole interval,
refuted if one has the opposite sign with its whole interval, and undecided otherwise. A false confirmation has a
probability of at most 2.5 %, a false refutation of 7.5 %, since there are three changes.

LOOKALIKE_BENCH_SUBJECTS sets the number of subjects; LOOKALIKE_BENCH_BUNDLE names another bundle. Writes
results/tau-sweep.json and results/tau-sweep.png.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.bundles.build import materialise
from lookalike.diffusion.flow import seed_of
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.evaluation.estimates import Estimate, cluster_bootstrap
from lookalike.evaluation.measurements import MEASUREMENTS
from lookalike.models.presets import load_preset
from lookalike.models.vae import load_vae
from lookalike.report.intervals import Panel, draw_panels
from lookalike.storage import Store, open_store
from pipelines.actors import ActorConfig
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.ingest.config import SampleWorldConfig
from tests.bench.measured import RESULTS, keep
from tests.bench.rendered import (
    Truth,
    cases_below,
    finite,
    make_dataset,
    one_thread,
    rounded,
    trained_probe,
    triplets_of,
)
from tests.bench.verdicts import verdict

SUBJECTS = int(os.environ.get("LOOKALIKE_BENCH_SUBJECTS", "120"))
WORLD = SampleWorldConfig(seed=72, subjects=SUBJECTS, size_px=128, bare_captions=1.0, defects=False)
STEPS, IMAGES_AT_ONCE = 12, 16
TEXT = "text alone"
PATHS = {  # -> schedules, from text to references
    "paper": ["0/0", "0.85/0.7", "0.95/0.85", "0.97/0.9"],
    "tau2 (tau1 = 0.95)": ["0.95/0", "0.95/0.5", "0.95/0.7", "0.95/0.85", "0.95/0.95"],
    "tau1 (tau2 = 0.5)": ["0.5/0.5", "0.7/0.5", "0.85/0.5", "0.95/0.5", "1.01/0.5"],
}
PAPER = {  # its table of these schedules
    "DINO-I": [0.6905, 0.7282, 0.7482, 0.7490],
    "CLIP-T": [0.3044, 0.3034, 0.3010, 0.2963],
}
CLAIMS = {  # what the paper's table says -> its sign, and our scores of the same quality
    "identity rises": (1, ["probe: identity", "identity"]),
    "prompt following falls": (-1, ["probe: place"]),
}
AXES = {  # row of the plot -> scores
    "identity": ["probe: identity", "identity"],
    "prompted background": ["probe: place"],
    "copying": ["copying", "probe: place is the reference's"],
}
SCHEDULES = list(dict.fromkeys([*(name for path in PATHS.values() for name in path), "reference_only"]))

pytestmark = pytest.mark.timeout(7200)


def _evaluated(bench_folder: Path) -> Store:
    """The evaluation of all schedules; what exists of it is reused."""
    folder = bench_folder / f"tau-{SUBJECTS}"
    dataset = make_dataset(folder, WORLD, held_out=0.0)
    config = EvaluateConfig(
        bundle=str(_bundle(bench_folder)),
        suite=dataset,
        out=str(folder / "evaluation"),
        split="train",  # no subject of this world was trained on
        max_samples=1,
        subjects=SUBJECTS,
        prompts_per_subject=1,
        stand_ins=1,
        stages=SCHEDULES,
        steps=STEPS,
        metrics={"diversity": False},
        image_batch_size=IMAGES_AT_ONCE,
        actors=ActorConfig(count=0),
    )
    evaluate(config)
    return open_store(config.out)


def _bundle(bench_folder: Path) -> Path:
    given = os.environ.get("LOOKALIKE_BENCH_BUNDLE")
    folder = Path(given) if given else bench_folder / "base"
    return folder if (folder / "bundle.json").exists() else materialise(load_preset("mini"), folder)


def test_tau_sweep_is_generated(bench_folder: Path) -> None:
    images = _evaluated(bench_folder).list("images/")
    assert len([info for info in images if info.key.endswith(".png")]) == SUBJECTS * len(SCHEDULES)


def test_text_alone_is_generated(bench_folder: Path) -> None:
    """The floor of the conditions: the same prompts and noise without a reference."""
    file = _text_alone(bench_folder)
    if file.exists():
        return
    one_thread()
    evaluation = _evaluated(bench_folder)
    triplets = triplets_of(str(file.parent / "dataset"), "train")
    cases = cases_below(evaluation.child("images/0-0"))
    pipe = SubjectPipeline.from_pretrained(_bundle(bench_folder))
    images = []
    for first in range(0, len(cases), IMAGES_AT_ONCE):
        part = cases[first : first + IMAGES_AT_ONCE]
        prompts, seeds = [triplets[case].prompt for case in part], [seed_of(0, case) % 2**63 for case in part]
        images += pipe(prompts, stages="mllm_only", num_inference_steps=STEPS, seeds=seeds).images
    np.save(file, np.stack([np.asarray(image) for image in images]))


def test_tau_sweep_is_judged(bench_folder: Path) -> None:
    one_thread()
    evaluation, bundle = _evaluated(bench_folder), _bundle(bench_folder)
    probe = trained_probe(bench_folder, load_vae(bundle))
    truth = Truth(bench_folder / f"tau-{SUBJECTS}", WORLD, probe, bundle, "train")
    table = pq.read_table(pa.BufferReader(evaluation.read(MEASUREMENTS)))
    cases = sorted(name for name in set(table["case"].to_pylist()) if name in truth.triplets)
    subjects = truth.subjects(cases)
    values = {name: _values(name, evaluation, table, truth, cases) for name in SCHEDULES}
    values[TEXT] = {
        f"probe: {score}": each for score, each in truth.judged(np.load(_text_alone(bench_folder)), cases).items()
    }
    real = {f"probe: {name}": score for name, score in truth.of_real_photos(cases).items()}
    changes = {path: _changes(values, schedules, subjects) for path, schedules in PATHS.items()}
    record: dict[str, Any] = {
        "command": "python -m pytest tests/bench/test_tau_sweep.py -s",
        "subjects": len(set(subjects)),
        "cases": len(cases),
        "steps of each kind": _kinds(bundle),
        "probe": truth.judge.own_error(),
        "table": {name: _means(scores, subjects) for name, scores in values.items()},
        "real photos": _means(real, subjects) | _real(table),
        "changes": {
            path: {score: {step: rounded(each) for step, each in found.items()} for score, found in scores.items()}
            for path, scores in changes.items()
        },
        "paper": dict(zip(PATHS["paper"], zip(*PAPER.values(), strict=True), strict=True)),
        "verdicts": {
            f"{claim}, by {score}": verdict(list(changes["paper"][score].values()), sign)
            for claim, (sign, scores) in CLAIMS.items()
            for score in scores
        },
    }
    keep("tau-sweep", record)
    (RESULTS / "tau-sweep.png").write_bytes(_plot(record))
    assert (RESULTS / "tau-sweep.png").stat().st_size <= 200_000
    assert record["probe"]["place"] > 0.95, "the probe does not see the background"


def _text_alone(bench_folder: Path) -> Path:
    return bench_folder / f"tau-{SUBJECTS}" / "text-alone.npy"


def _values(name: str, evaluation: Store, table: pa.Table, truth: Truth, cases: Sequence[str]) -> dict[str, np.ndarray]:
    """Every score of the images by one schedule, in the order of the cases."""
    prefix = "" if name == SCHEDULES[0] else f"{name}/"
    measured: dict[str, dict[str, float]] = {}
    for row in table.to_pylist():
        measured.setdefault(row["metric"], {})[row["case"]] = row["value"]
    images = evaluation.child(f"images/{name.replace('/', '-')}")
    scores = {f"probe: {score}": values for score, values in truth(images, cases).items()}
    names = ("identity", "identity_margin", "copying", "copying_similarity", "quality_sharpness")
    return scores | {score: np.array([measured[prefix + score][case] for case in cases]) for score in names}


def _real(table: pa.Table) -> dict[str, list[float]]:
    """The evaluation's identity of other photos of the subject, and of other subjects."""
    found = {}
    for name in ("ceiling/identity", "floor/identity"):
        rows = [row for row in table.to_pylist() if row["metric"] == name]
        found[name] = rounded(cluster_bootstrap(np.array([r["value"] for r in rows]), [r["subject"] for r in rows]))
    return found


def _means(scores: Mapping[str, np.ndarray], subjects: Sequence[str]) -> dict[str, list[float]]:
    return {name: rounded(cluster_bootstrap(*finite(values, subjects))) for name, values in scores.items()}


def _changes(
    values: Mapping[str, Mapping[str, np.ndarray]], path: Sequence[str], subjects: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """By score and by step of a path the difference that the step makes, paired by case."""
    return {
        score: {
            f"{before} to {after}": cluster_bootstrap(*finite(values[after][score] - values[before][score], subjects))
            for before, after in pairwise(path)
        }
        for score in values[path[0]]
    }


def _kinds(bundle: Path) -> dict[str, str]:
    """By schedule how many of the steps see the MLLM alone, both conditions, and references alone."""
    pipe = SubjectPipeline.from_pretrained(bundle)
    kinds = {}
    for name in SCHEDULES:
        seen = [(bool(each.mllm), bool(each.references)) for each in pipe.plan(name, STEPS).weights]
        kinds[name] = "/".join(str(seen.count(kind)) for kind in ((True, False), (True, True), (False, True)))
    return kinds


def _plot(record: Mapping[str, Any]) -> bytes:
    levels = {"real photos": record["real photos"]["probe: identity"][0]}
    rows = [
        [
            Panel(
                axis if number == 0 else "",
                [name.replace("0.", ".") for name in schedules] if path == "paper" else _ends(path, schedules),
                {score: [record["table"][name][score] for name in schedules] for score in scores},
                label="the paper's schedules, tau1/tau2" if path == "paper" else path,
                levels=levels if axis == "identity" else {},
            )
            for number, (path, schedules) in enumerate(PATHS.items())
        ]
        for axis, scores in AXES.items()
    ]
    title = f"`mini`, {record['subjects']} held-out subjects, one reference, {STEPS} steps; 95 % intervals"
    return draw_panels(rows, title)


def _ends(path: str, schedules: Sequence[str]) -> list[str]:
    """The threshold that varies along a path."""
    return [name.split("/")[path.startswith("tau2")] for name in schedules]
