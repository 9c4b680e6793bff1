"""Measure what `mini` has learned: a probe judges generated images of subjects that were not trained on.

    python -m pytest tests/bench/test_probes.py -s        # an hour and a half on one core

The probe (tests/bench/probe.py) learns from a world of its own; its error on real photos stands in the first row
of the table. Then 240 held-out subjects x 4 prompts are generated from one reference: by the preset's schedule, by the
paper's, with both conditions throughout, with the MLLM alone, and without any reference. The prompts are the captions
of the subject's other photos, whose place and mostly view differ from the reference's: the whole caption ("told": it
names colours and pattern), and a bare one, for which they have to come from the reference. Half of the subjects have a
twin: another shape in the same colours and pattern.

Writes results/probes.json and results/probes-grid.png. Images and the trained probe stay in
LOOKALIKE_BENCH_FOLDER, so that a run that was stopped resumes. LOOKALIKE_BENCH_BUNDLE names another bundle than the
shipped one.
"""

import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from lookalike.bundles.build import materialise
from lookalike.bundles.manifest import bundle_sha256, read_manifest
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.evaluation.estimates import cluster_bootstrap
from lookalike.models.preprocess import Preprocessor
from lookalike.models.presets import load_preset
from lookalike.models.vae import load_vae
from lookalike.report.grid import GridRow, draw_grid
from lookalike.training.parts import reconstruct
from pipelines.ingest.config import SampleWorldConfig
from tests.bench.judge import Case, Judge, place_of, twins_of
from tests.bench.measured import RESULTS, keep
from tests.bench.probe import Photo, read_photos, to_tensor, train_probe

TAUGHT = SampleWorldConfig(seed=61, subjects=2400, size_px=128, defects=False)  # what the probe learns from
HELD_OUT = SampleWorldConfig(seed=71, subjects=240, size_px=128, defects=False)  # seen by neither probe nor model
PROMPTS, STEPS, BATCH = 4, 12, 16
MODES = {  # -> stages
    "mini": "preset",
    "paper": "paper",
    "both throughout": "both",
    "MLLM only": "mllm_only",
    "no reference": "mllm_only",
}
WITH_BOTH, WITHOUT = list(MODES)[:3], list(MODES)[3:]
ROWS = [f"{mode}, {text}" for text in ("told", "bare") for mode in MODES]
REAL = "real photographs, through the VAE"

pytestmark = pytest.mark.timeout(7200)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    given = os.environ.get("LOOKALIKE_BENCH_BUNDLE")
    return Path(given) if given else materialise(load_preset("mini"), tmp_path / "bundle")


class WithoutReferences(Preprocessor):
    """A pipeline without references."""

    def __call__(self, prompts: Any, references: Any, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """As the parent's, whatever the references."""
        return super().__call__(prompts, [[] for _ in prompts], *args, **kwargs)


@pytest.mark.parametrize("row", ROWS)
def test_images_are_generated(row: str, bundle: Path, bench_folder: Path) -> None:
    file = _drawn(bench_folder, bundle, row)
    if file.exists():
        return
    torch.set_num_threads(1)
    mode, _, text = row.partition(", ")
    pipe = SubjectPipeline.from_pretrained(bundle)
    pipe.set_progress_bar_config(disable=True)
    if mode == "no reference":
        pipe.preprocessor = WithoutReferences(pipe.preprocessor.preset, pipe.preprocessor.tokenizer_file)
    cases = _cases(_held_out(bench_folder))
    images = [
        pipe(
            [case.prompt(text == "bare") for case in part],
            [[case.reference.image] for case in part],
            num_inference_steps=STEPS,
            stages=MODES[mode],
            seeds=[case.seed for case in part],
        ).images
        for part in tqdm([cases[first : first + BATCH] for first in range(0, len(cases), BATCH)], desc=row)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.stack([np.asarray(image) for part in images for image in part]))


def test_generated_images_show_the_subjects(bundle: Path, bench_folder: Path) -> None:
    """Judge all generated images."""
    torch.set_num_threads(1)
    vae, held_out = load_vae(bundle), _held_out(bench_folder)
    taught = read_photos(bench_folder / f"world-{TAUGHT.seed}-{TAUGHT.subjects}", TAUGHT)
    probe = train_probe(taught, vae, bench_folder / "probe")
    shown = reconstruct(vae, to_tensor([photo.image for photo in held_out]))
    judge, cases = Judge(probe, shown, held_out, twins_of(HELD_OUT)), _cases(held_out)
    drawn = {row: np.load(file) for row in ROWS if (file := _drawn(bench_folder, bundle, row)).exists()}
    values = {REAL: judge(shown[[place_of(held_out, case.target) for case in cases]], cases)}
    values |= {row: judge(to_tensor(images), cases) for row, images in drawn.items()}
    keep("probes", {"cases": len(cases), "probe": judge.own_error(), "table": _table(values, cases)})
    _grid(cases, drawn).quantize(256).save(RESULTS / "probes-grid.png", optimize=True)


def _held_out(bench_folder: Path) -> list[Photo]:
    return read_photos(bench_folder / f"world-{HELD_OUT.seed}", HELD_OUT)


def _drawn(bench_folder: Path, bundle: Path, row: str) -> Path:
    return bench_folder / f"drawn-{bundle_sha256(read_manifest(bundle))[:12]}" / f"{row}.npy"


def _cases(photos: list[Photo]) -> list[Case]:
    cases = []
    for name in sorted({photo.subject for photo in photos}):
        reference, *others = (photo for photo in photos if photo.subject == name)
        cases += [Case(reference, target, number) for number, target in enumerate(others[:PROMPTS])]
    return cases


def _table(values: dict[str, dict[str, np.ndarray]], cases: list[Case]) -> dict[str, dict[str, list[float]]]:
    """For each row and score mean and 95 % interval over subjects; for each mode also its lead over the others."""
    subjects = np.array([case.target.subject for case in cases])

    def estimate(scores: np.ndarray) -> list[float]:
        kept = ~np.isnan(scores)
        found = cluster_bootstrap(scores[kept], subjects[kept].tolist())
        return [round(value, 3) for value in (found.mean, found.low, found.high)]

    table = {row: {name: estimate(scores) for name, scores in found.items()} for row, found in values.items()}
    for text in ("bare", "told"):
        for mode, other in product(WITH_BOTH, WITHOUT):
            pair = [values.get(f"{name}, {text}") for name in (mode, other)]
            if None not in pair:
                lead = {name: estimate(pair[0][name] - pair[1][name]) for name in pair[0]}
                table[f"{mode} less {other}, {text}"] = lead
    return table


def _grid(cases: list[Case], drawn: dict[str, np.ndarray], rows: int = 8) -> Any:
    """Pictures of so many cases, evenly spread, as they came."""
    columns = {"real photo": np.stack([case.target.image for case in cases]), **drawn}
    chosen = [
        GridRow(
            [cases[i].reference.image], cases[i].prompt(False), {name: images[i] for name, images in columns.items()}
        )
        for i in range(0, len(cases), len(cases) // rows + 1)  # an odd step, so that each prompt has its turn
    ]
    return draw_grid(
        chosen, list(columns), "Held-out subjects, one reference; bare: the prompt without colours and pattern"
    )
