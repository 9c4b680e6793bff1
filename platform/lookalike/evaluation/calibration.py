"""The identity of a judge: what its metrics say about fixed images, and whether two evaluations had the same judge.

A model behind a Hub id, a library that resizes images, or the code of a metric can change, and all scores move without
a change of the bundle. So an evaluation first measures the calibration images of this package, on a CPU, and stores the
values (:class:`~lookalike.evaluation.scores.Judge`). Two evaluations can be compared if the values of each metric that
both have differ by at most :data:`BOUND`. It does not matter where the models lie: a folder that was renamed gives
equal values. The values of the packaged judges are recorded in this package, and an evaluation by one that gives others
is refused.

The calibration images (``assets/calibration``) are 24 renders of the sample world and simple changes of them. Each is
measured as if it were generated, with one reference of its size: so the values depend on a metric's model, its
preprocessing and its code, but not on how it averages over references. What they cannot see is a judge that differs on
other images only.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lookalike.config import canonical_json, fingerprint
from lookalike.data.images import decode
from lookalike.documents import parse_json, parse_members
from lookalike.errors import InputError
from lookalike.evaluation.metrics import SET_METRICS, Metric, SetMetric, Settings, Task, metrics_of, protocols
from lookalike.evaluation.metrics.base import Pixels
from lookalike.evaluation.scores import Calibration, Judge, Scores
from lookalike.recent import Recent

CALIBRATION_DIR = Path(__file__).parents[1] / "assets" / "calibration"
IMAGES, RECORDED = "images.json", "recorded.json"
BOUND = 1e-3
"""Mean absolute difference of a metric's values up to which two judges are the same; relative to the mean absolute
value if that is above 1. Other processors and BLAS libraries differ by about 1e-6, another model by more than 1e-2."""

_DECIMALS = 6
_PER_SUBJECT = 3  # images: two photos, and a change of the second
_KINDS = ("place", "recolouring", "accessory", "style")
_PLACES = ("model", "revision")
"""Members of a protocol that name the model, which the calibration identifies by its values."""
_ENTRY = {"image": str, "subject": str, "class": str, "prompt": str, "plain_prompt": str, "sha256": str}
_REINSTALL = "reinstall lookalike"
_JUDGES = Recent[Judge](8)
"""By the protocols and settings of their metrics: the models of a revision give the same values."""


@dataclass(frozen=True)
class CalibrationSet:
    """The calibration images, each with its task."""

    images: tuple[Pixels, ...]
    tasks: tuple[Task, ...]
    sha256: str
    """Fingerprint of the images and of what the tasks say."""


@lru_cache(maxsize=1)
def calibration_set() -> CalibrationSet:
    """Read the calibration images: uint8 RGB ``[H, W, 3]`` of 64 to 96 px.

    Raises InputError: a file of the package is missing or damaged.
    """
    path = CALIBRATION_DIR / IMAGES
    listed = parse_json(_read(path), str(path), fix=_REINSTALL)
    entries = [parse_members(json.dumps(entry), str(path), _ENTRY, fix=_REINSTALL) for entry in listed]
    images = [_image(entry) for entry in entries]
    tasks = []
    for number, entry in enumerate(entries):
        first = number // _PER_SUBJECT * _PER_SUBJECT
        reference = images[first + (number + 1) % _PER_SUBJECT]  # first: second, second: third, third: first
        tasks.append(
            Task(
                case=entry["image"],
                subject=entry["subject"],
                prompt=entry["prompt"],
                references=[reference],
                others=[images[(first + _PER_SUBJECT) % len(images)]],
                photos=[reference],
                class_name=entry["class"],
                plain_prompt=entry["plain_prompt"],
                prompt_kind=_KINDS[number % len(_KINDS)],
            )
        )
    return CalibrationSet(tuple(images), tuple(tasks), fingerprint(entries))


def calibrate(metrics: Sequence[Metric], set_metrics: Sequence[SetMetric] = ()) -> Judge:
    """Measure the calibration images with ``metrics``, and the images of each of their subjects with ``set_metrics``.

    Values are rounded to 6 decimals. Takes about a second for the packaged embedder on a CPU.

    Raises InputError: a value is not finite.
    """
    fixed = calibration_set()
    values: dict[str, dict[str, float]] = {}
    revisions: dict[str, str] = {}
    for metric in metrics:
        for task, row in zip(fixed.tasks, metric(fixed.images, fixed.tasks), strict=True):
            for name, value in row.items():
                values.setdefault(name, {})[task.case] = _rounded(name, value)
                revisions[name] = _revision(metric)
    for set_metric in set_metrics:
        for first in range(0, len(fixed.images), _PER_SUBJECT):
            part = slice(first, first + _PER_SUBJECT)
            for name, value in set_metric(fixed.images[part], fixed.tasks[part]).items():
                values.setdefault(name, {})[fixed.tasks[first].subject] = _rounded(name, value)
                revisions[name] = _revision(set_metric)
    calibrations = {name: Calibration(found, fingerprint(found), revisions[name]) for name, found in values.items()}
    return Judge(fixed.sha256, dict(sorted(calibrations.items())))


def judge_of(settings: Settings, embedder: str) -> tuple[Judge, dict[str, dict[str, Any]]]:
    """Calibrate all metrics that ``settings`` turn on, and describe them: the judge, and the protocols of its metrics.

    A process calibrates a judge once.

    ``embedder`` is the revision of the embedder that the settings name.

    Raises InputError: a model does not exist, or a packaged judge has drifted (:func:`check_packaged`).
    """
    of_images = metrics_of(settings)
    of_sets = [metric for kind in SET_METRICS if (metric := kind.create(settings, "cpu")) is not None]
    described = canonical_json(protocols([*of_images, *of_sets]))  # with the revisions of all models
    names = (settings.embedder, settings.clip, settings.dino, canonical_json(settings.metrics))
    judge = _JUDGES.get((described, *names), lambda: calibrate(of_images, of_sets))
    check_packaged(judge, embedder)
    return judge, json.loads(described)


def check_packaged(judge: Judge, embedder: str) -> None:
    """Check the values of a packaged judge, by the revision of the ``embedder``, against those of this package.

    The embedders of users have no recorded values, and pass. So does a metric that was not measured.

    Raises InputError: the judge differs from what is recorded by more than :data:`BOUND`.
    """
    for name, recorded in recorded_values().get(embedder, {}).items():
        difference = drift(judge.metrics[name].values, recorded) if name in judge.metrics else 0.0
        if difference > BOUND:
            raise InputError(
                f"the packaged judge {embedder} has drifted: on the calibration images {name} differs from its recorded"
                f" values by {difference:.4g} (mean absolute difference), more than {BOUND:g}",
                value=embedder,
                fix="install the versions of requirements.lock, so that scores can be compared",
            )


def recorded_values() -> dict[str, dict[str, dict[str, float]]]:
    """Read the recorded values of the packaged judges: revision → metric → calibration image → value."""
    path = CALIBRATION_DIR / RECORDED
    recorded: dict[str, dict[str, dict[str, float]]] = parse_json(_read(path), str(path), fix=_REINSTALL)
    return recorded


def drift(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """Mean absolute difference of values of the same images, relative to their mean absolute value if that is above 1.

    Infinite if the images differ: a metric that leaves out other images is another metric.
    """
    if ours.keys() != theirs.keys() or not ours:
        return math.inf
    difference = sum(abs(value - theirs[name]) for name, value in ours.items()) / len(ours)
    return difference / max(1.0, sum(map(abs, theirs.values())) / len(theirs))


def same_judge(ours: Scores, theirs: Scores) -> str | None:
    """Return None if the metrics of two evaluations can be compared, or else the reason why not, with its fix.

    Compared are the metrics that both have: their calibration, and their protocol but for the name of the model. Scores
    of earlier versions of this software have no calibration: there the revision of the embedder, and the names of the
    other models, have to be equal.
    """
    if ours.judge is None or theirs.judge is None:
        return _same_names(ours, theirs)
    if ours.judge.images_sha256 != theirs.judge.images_sha256:
        return "their judges were calibrated on other images; evaluate both with one version of lookalike"
    for name in sorted(ours.protocols.keys() & theirs.protocols.keys()):
        if differing := _differing(ours.protocols[name], theirs.protocols[name]):
            return f"their protocols of {name} differ: {differing}; evaluate both with the same settings"
    for name in sorted(ours.judge.metrics.keys() & theirs.judge.metrics.keys()):
        one, other = ours.judge.metrics[name], theirs.judge.metrics[name]
        if (difference := drift(one.values, other.values)) > BOUND:
            revisions = f" ({one.revision or 'no model'}; {other.revision or 'no model'})"
            return (
                f"their judges differ: on the calibration images {name}{revisions} differs by {difference:.4g},"
                f" more than {BOUND:g}; evaluate both with one judge"
            )
    return None


def _same_names(ours: Scores, theirs: Scores) -> str | None:
    named: list[tuple[str, Any, Any]] = [("embedder", ours.embedder, theirs.embedder)]
    named += [(name, ours.config.get(name), theirs.config.get(name)) for name in ("clip", "dino")]
    for name, one, other in named:
        if one and other and one != other:
            return f"their judges differ: {name} {one}; {other}; evaluate both with one judge"
    return None


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    names = sorted((ours.keys() | theirs.keys()) - set(_PLACES))
    return ", ".join(
        f"{name} {ours.get(name)}; {theirs.get(name)}" for name in names if ours.get(name) != theirs.get(name)
    )


def _revision(metric: Metric | SetMetric) -> str:
    """Revision of a metric's model, which its protocol names; empty for a metric without one."""
    protocol = getattr(metric, "protocol", None)
    return str(protocol().get("model", "")) if protocol else ""


def _rounded(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise InputError(
            f"{name} of a calibration image is not a finite number", value=value, fix="choose another model for it"
        )
    return round(float(value), _DECIMALS) + 0.0  # without a negative zero


def _image(entry: Mapping[str, Any]) -> Pixels:
    path = CALIBRATION_DIR / f"{entry['image']}.webp"
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise InputError("a calibration image is damaged", value=str(path), fix=_REINSTALL)
    return decode(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"a file of the calibration cannot be read ({error.strerror})", value=str(path), fix=_REINSTALL
        ) from error
