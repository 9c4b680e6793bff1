"""Measure how ``copying`` finds planted copies, and whether it flags new images of a subject.

    python -m pytest tests/bench -k copying -s
    LOOKALIKE_BENCH_PHOTOS=FOLDER python -m pytest tests/bench -k copying -s

At 64 pixels recall is below the 95 % that are asked for (recoloured cutouts, and those saved as JPEG at that size).

The sample world: the threshold is fixed on the subjects of one world, precision and recall are measured on another's.
FOLDER holds real photos, ``<subject>/<nn>.jpg``. Writes results/copying.json.
"""

import time
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from tqdm import tqdm

from lookalike.annotators.foreground import foreground_weight
from lookalike.data.images import decode
from lookalike.evaluation.metrics.copying import THRESHOLD
from lookalike.evaluation.metrics.matching import Subject, best_match
from lookalike.pixels import crop_resize
from pipelines.ingest.sample.world import subject
from tests.bench.measured import keep
from tests.bench.repeated import bench_photos
from tests.planted_copies import PLANTS, empty_place, rendered, resized

pytestmark = pytest.mark.timeout(3600)

CHOSEN_ON, JUDGED_ON, PLACES = 41, 57, 77  # seeds of worlds
CHOSEN_SUBJECTS, SUBJECTS, VIEWS = 12, 32, 6
REAL_REFERENCES = 2  # photos of a subject that are copied
RENDERED = 256  # px

Similarities = dict[str, list[float]]


def judged(world: int, subjects: int, size: int) -> tuple[Similarities, Similarities, float]:
    """Similarities of planted and of innocent images by their kind, and the seconds of processor time for each."""
    planted, innocent, spent, images = defaultdict(list), defaultdict(list), 0.0, 0
    for number in tqdm(range(subjects), desc=f"world {world}, {size} px"):
        thing, other = subject(world, number), subject(world, subjects + number)
        photo, mask = rendered(thing, 0, RENDERED)
        place = empty_place(subject(PLACES, number), 1, RENDERED)
        new = {f"view {index}": rendered(thing, index, RENDERED)[0] for index in range(1, VIEWS)}
        new |= {f"another subject {index}": rendered(other, index, RENDERED)[0] for index in range(5)}
        rng = np.random.default_rng([world, number])
        copies = {kind: plant(photo, mask, place, rng, size) for kind, plant in PLANTS.items()}
        start = time.process_time()
        reference = Subject(resized(photo, size))
        for kind, image in copies.items():
            planted[kind].append(best_match(reference, image).similarity)
        for kind, image in new.items():
            innocent[kind.rsplit(" ", 1)[0]].append(best_match(reference, resized(image, size)).similarity)
        spent, images = spent + time.process_time() - start, images + len(copies) + len(new)
    return planted, innocent, spent / images


def rates(planted: Similarities, innocent: Similarities, threshold: float) -> dict[str, Any]:
    flags = np.array([value >= threshold for values in planted.values() for value in values])
    alarms = np.array([value >= threshold for values in innocent.values() for value in values])
    found, wrong = int(flags.sum()), int(alarms.sum())
    return {
        "planted": len(flags),
        "innocent": len(alarms),
        "recall": _share(found, len(flags)),
        "precision": _share(found, found + wrong),
        "innocent_flagged": _share(wrong, len(alarms)),
        "planted_found": {kind: round(float(np.mean(np.array(v) >= threshold)), 3) for kind, v in planted.items()},
        "innocent_flagged_by_kind": {
            kind: round(float(np.mean(np.array(v) >= threshold)), 3) for kind, v in innocent.items()
        },
    }


def _share(count: int, of: int) -> dict[str, Any]:
    """Share with its exact 95 % interval (Clopper and Pearson)."""
    interval = binomtest(count, of).proportion_ci(0.95)
    return {"share": round(count / of, 4), "interval": [round(interval.low, 4), round(interval.high, 4)]}


def best_threshold(planted: Similarities, innocent: Similarities) -> float:
    """The threshold whose smaller one of recall and specificity is greatest."""
    copies, others = (np.concatenate([*map(np.array, group.values())]) for group in (planted, innocent))
    choices = np.arange(0.80, 0.99, 0.005)
    return float(choices[np.argmax([min((copies >= t).mean(), (others < t).mean()) for t in choices])])


@pytest.mark.parametrize("size", [64, 256])
def test_planted_copies_are_flagged_and_new_renders_are_not(size: int) -> None:
    threshold = best_threshold(*judged(CHOSEN_ON, CHOSEN_SUBJECTS, size)[:2])
    planted, innocent, seconds = judged(JUDGED_ON, SUBJECTS, size)
    record = {
        "command": "python -m pytest tests/bench -k copying -s",
        "threshold": THRESHOLD,
        "best_threshold_on_other_subjects": round(threshold, 3),
        "milliseconds_an_image_and_reference": round(1000 * seconds, 1),
        **rates(planted, innocent, THRESHOLD),
    }
    keep("copying", record, f"sample_world_{size}_px")
    assert record["planted"] >= 300
    assert record["innocent"] >= 300
    assert record["precision"]["share"] >= 0.95
    assert record["recall"]["share"] >= 0.95


@pytest.mark.parametrize("size", [64, 256])
def test_planted_copies_of_real_photos(size: int) -> None:
    subjects: dict[str, list[np.ndarray]] = defaultdict(list)
    for path in bench_photos():
        subjects[path.parent.name].append(crop_resize(decode(path.read_bytes()), RENDERED, RENDERED))
    names = sorted(subjects)
    planted, innocent = defaultdict(list), defaultdict(list)
    for number, name in enumerate(tqdm(names)):
        photos, others = subjects[name], subjects[names[(number + 1) % len(names)]]
        for index, photo in enumerate(photos[:REAL_REFERENCES]):
            rng = np.random.default_rng([number, index])
            reference = Subject(resized(photo, size))
            match = partial(best_match, reference)
            place = empty_place(subject(PLACES, number), index, RENDERED)
            mask = foreground_mask(photo)
            for kind, plant in PLANTS.items():
                planted[kind].append(match(plant(photo, mask, place, rng, size)).similarity)
            for other in (*photos[:index], *photos[index + 1 :]):
                innocent["another photo of the subject"].append(match(resized(other, size)).similarity)
            for other in others:
                innocent["another subject"].append(match(resized(other, size)).similarity)
    record = {
        "command": "LOOKALIKE_BENCH_PHOTOS=dreambooth-dev python -m pytest tests/bench -k copying -s",
        "photos": sum(map(len, subjects.values())),
        "threshold": THRESHOLD,
        "threshold_that_is_best_on_these": round(best_threshold(planted, innocent), 3),
        **rates(planted, innocent, THRESHOLD),
    }
    keep("copying", record, f"real_photos_{size}_px")
    assert record["precision"]["share"] >= 0.95  # recall is reported: the cutouts are those of an estimated mask


def foreground_mask(photo: np.ndarray) -> np.ndarray:
    """An estimate of the subject's mask, uint8 [H, W], since real photos have none; the whole photo if it is empty."""
    size = photo.shape[1], photo.shape[0]
    weight = np.asarray(Image.fromarray(foreground_weight(photo)).resize(size, Image.Resampling.BILINEAR))
    shown = weight > 0.35
    return np.where(shown | ~shown.any(), 255, 0).astype(np.uint8)
