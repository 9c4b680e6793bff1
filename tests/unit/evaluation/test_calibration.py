"""The judge of an evaluation is known by its values on fixed images; scores of different judges are not compared."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from lookalike.annotators.embedder import EMBEDDERS, NO_EMBEDDER, load_embedder
from lookalike.config import fingerprint
from lookalike.errors import InputError
from lookalike.evaluation import calibration
from lookalike.evaluation.calibration import (
    BOUND,
    calibrate,
    calibration_set,
    check_packaged,
    drift,
    recorded_values,
    same_judge,
)
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.metrics import Task
from lookalike.evaluation.metrics.identity import Identity
from lookalike.evaluation.scores import Calibration, Judge, Scores, Source


class _Colours:
    """Embeds an image as its mean colour, and a constant that moves all similarities."""

    revision = "colours"
    dim = 4

    def __init__(self, constant: float = 0.0) -> None:
        self._constant = constant

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        rows = np.stack([[*(image.reshape(-1, 3).mean(axis=0) / 255), self._constant] for image in images])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class _Spread:
    """A metric of a subject's images together."""

    labels: ClassVar = {"spread": "spread"}

    def __call__(self, images: Sequence[np.ndarray], tasks: Sequence[Task]) -> dict[str, float]:
        assert len({task.subject for task in tasks}) == 1
        return {"spread": float(np.std([image.mean() for image in images]))}


def _judge(constant: float = 0.0) -> Judge:
    return calibrate([Identity(_Colours(constant))])


def _scores(judge: Judge | None = None, **changes: object) -> Scores:
    scores = Scores(
        bundle=Source("file:///b", "b" * 64),
        suite=Source("file:///s", "s" * 64, 1),
        conditions="right",
        metrics={"identity": Estimate(0.5, 0.4, 0.6, 8)},
        embedder="colours",
        judge=judge,
    )
    return replace(scores, **changes)  # type: ignore[arg-type]


def test_calibration_images_are_small_and_each_has_one_reference() -> None:
    fixed = calibration_set()
    assert len(fixed.images) == 24
    assert len({task.subject for task in fixed.tasks}) == 8
    assert len({image.tobytes() for image in fixed.images}) == 24
    assert any(image.shape[0] != image.shape[1] for image in fixed.images)
    for image, task in zip(fixed.images, fixed.tasks, strict=True):
        assert len(task.references) == len(task.photos) == len(task.others) == 1
        assert not np.array_equal(image, task.references[0])
        assert task.class_name in task.prompt
        assert task.class_name in task.plain_prompt
    files = list(calibration.CALIBRATION_DIR.iterdir())
    assert sum(file.stat().st_size for file in files) < 300_000


def test_every_packaged_judge_gives_its_recorded_values() -> None:
    """Fails if a packaged embedder changes without `python infra/setup/calibration.py record`."""
    names = [name for name in EMBEDDERS if name != NO_EMBEDDER]
    assert sorted(recorded_values()) == sorted(EMBEDDERS[name].revision for name in names)
    for name in names:
        judge, revision = calibrate([Identity(load_embedder(name))]), EMBEDDERS[name].revision
        check_packaged(judge, revision)
        for metric, recorded in recorded_values()[revision].items():
            assert drift(judge.metrics[metric].values, recorded) < 1e-5


def test_packaged_judge_that_drifted_is_refused() -> None:
    small, large = (EMBEDDERS[name].revision for name in ("efficientnet-lite0", "efficientnet-lite0-colour"))
    judge = calibrate([Identity(load_embedder("efficientnet-lite0"))])
    check_packaged(judge, small)
    with pytest.raises(InputError, match=r"has drifted: .* identity differs .* by 0\.\d+ .*more than 0\.001") as error:
        check_packaged(judge, large)
    assert error.value.value == large
    assert "requirements.lock" in error.value.fix
    check_packaged(judge, "somebody/their-model@1234")  # of a user: nothing is recorded


def test_calibration_is_exact_and_stored_beside_the_scores() -> None:
    judge = calibrate([Identity(_Colours())], [_Spread()])  # type: ignore[list-item]
    assert judge == calibrate([Identity(_Colours())], [_Spread()])  # type: ignore[list-item]
    assert list(judge.metrics) == ["identity", "identity_margin", "spread"]
    assert len(judge.metrics["identity"].values) == 24
    assert len(judge.metrics["spread"].values) == 8
    scores = _scores(judge, protocols={"identity": {"model": "colours", "references": "given"}})
    data = scores.to_json()
    assert Scores.from_json(data, "here") == scores
    assert Scores.from_json(data, "here").to_json() == data


def test_scores_of_earlier_versions_keep_their_bytes() -> None:
    document = json.loads(_scores().to_json())
    assert not {"judge", "protocols", "measurements_sha256"} & document.keys()
    assert Scores.from_json(_scores().to_json(), "here").judge is None


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda values: values | {"sculpture_2000000-first": 0.1}, "calibration of identity was changed"),
        (lambda values: values | {"sculpture_2000000-first": float("nan")}, "not finite"),
    ],
)
def test_edited_calibration_is_refused(forge, message: str) -> None:
    document = json.loads(_scores(_judge()).to_json())
    found = document["judge"]["metrics"]["identity"]
    found["values"] = forge(found["values"])
    with pytest.raises(InputError, match=message):
        Scores.from_json(json.dumps(document), "here")


def test_value_that_is_not_finite_is_refused_by_name() -> None:
    class Broken(_Spread):
        def __call__(self, images: Sequence[np.ndarray], tasks: Sequence[Task]) -> dict[str, float]:
            return {"spread": float("nan")}

    with pytest.raises(InputError, match="spread of a calibration image is not a finite number"):
        calibrate([], [Broken()])  # type: ignore[list-item]


def test_judge_in_a_renamed_folder_is_the_same() -> None:
    judge = _judge()
    renamed = Judge(
        judge.images_sha256, {name: replace(found, revision="other@1") for name, found in judge.metrics.items()}
    )
    ours = _scores(judge, protocols={"identity": {"model": "colours", "references": "given"}})
    theirs = _scores(renamed, embedder="other@1", protocols={"identity": {"model": "other@1", "references": "given"}})
    assert same_judge(ours, theirs) is None


def test_differences_within_the_bound_are_the_same_judge() -> None:
    judge = _judge()
    found = judge.metrics["identity"]

    def moved(by: float) -> Scores:
        values = {name: value + by for name, value in found.values.items()}
        return _scores(Judge(judge.images_sha256, {"identity": Calibration(values, fingerprint(values))}))

    assert same_judge(_scores(judge), moved(0.9 * BOUND)) is None
    assert same_judge(_scores(judge), moved(1.1 * BOUND)) is not None
    assert same_judge(moved(1.1 * BOUND), _scores(judge)) is not None


def test_drift_is_relative_for_values_above_one() -> None:
    assert drift({"a": 1000.0, "b": 3000.0}, {"a": 1001.0, "b": 3001.0}) == pytest.approx(1 / 2001)
    assert drift({"a": 0.5}, {"a": 0.4}) == pytest.approx(0.1)
    assert drift({"a": 0.5}, {"b": 0.5}) == drift({}, {}) == float("inf")


def test_other_judges_protocols_and_images_are_refused_by_name() -> None:
    ours = _scores(_judge(), protocols={"identity": {"references": "given"}})
    reason = same_judge(ours, _scores(_judge(2.0)))
    assert reason is not None
    assert "identity" in reason
    assert "evaluate both with one judge" in reason
    reason = same_judge(ours, _scores(_judge(), protocols={"identity": {"references": "all"}}))
    assert reason == ("their protocols of identity differ: references given; all; evaluate both with the same settings")
    judge = _judge()
    assert "other images" in (same_judge(ours, _scores(replace(judge, images_sha256="0" * 64))) or "")


def test_metric_that_only_one_evaluation_has_is_not_compared() -> None:
    more = calibrate([Identity(_Colours())], [_Spread()])  # type: ignore[list-item]
    assert same_judge(_scores(_judge()), _scores(more)) is None


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ({}, None),
        ({"embedder": "another"}, "their judges differ: embedder colours; another"),
        ({"config": {"clip": "a/clip"}}, None),  # only one of them measured it
    ],
)
def test_scores_without_calibration_are_compared_by_name(theirs: dict, reason: str | None) -> None:
    found = same_judge(_scores(_judge()), _scores(None, **theirs))
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)


def test_other_models_of_earlier_scores_are_refused_by_name() -> None:
    ours, theirs = (_scores(None, config={"clip": name}) for name in ("a/clip", "b/clip"))
    assert same_judge(ours, theirs) == "their judges differ: clip a/clip; b/clip; evaluate both with one judge"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "images.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "bowl_2000001-first.webp").write_bytes(b"RIFF"), "a calibration image is damaged"),
        (lambda folder: (folder / "images.json").write_text('[{"image": "x"}]'), "lacks 'subject'"),
    ],
)
def test_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it, message: str) -> None:
    import shutil

    folder = shutil.copytree(calibration.CALIBRATION_DIR, tmp_path / "calibration")
    break_it(folder)
    monkeypatch.setattr(calibration, "CALIBRATION_DIR", folder)
    calibration_set.cache_clear()
    try:
        with pytest.raises(InputError, match=message) as error:
            calibration_set()
        assert "reinstall" in error.value.fix
    finally:
        calibration_set.cache_clear()
