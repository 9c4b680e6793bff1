"""Comparison of models on a real suite, with mini models of random weights and scikit-image's photos."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.evaluation import calibration
from lookalike.evaluation.calibration import same_judge
from lookalike.evaluation.metrics import embedders
from lookalike.recent import Recent
from pipelines.compare import CompareConfig, compare
from pipelines.evaluate import EvaluateConfig, evaluate
from tests.integration.test_evaluate_generate import HERE, bundle, dataset, photos  # noqa: F401 (fixtures)

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def other(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Another mini bundle: the same one with noise on its DiT."""
    import torch

    from lookalike.diffusion.pipeline import SubjectPipeline

    pipe = SubjectPipeline.from_pretrained(bundle)
    generator = torch.Generator().manual_seed(1)
    for parameter in pipe.transformer.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("other")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def first(bundle: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:  # noqa: F811
    """A finished evaluation."""
    config = EvaluateConfig(
        bundle=str(bundle),
        suite=str(dataset),
        out=str(tmp_path_factory.mktemp("first") / "scores"),
        max_samples=16,
        subjects=3,
        prompts_per_subject=2,
        stages=["preset"],
        steps=2,
        actors=HERE,
    )
    evaluate(config)
    return config


@pytest.fixture(scope="module")
def config(first: EvaluateConfig, other: Path, tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    """A finished comparison of the evaluation and a bundle, which was evaluated by the same settings."""
    out = tmp_path_factory.mktemp("compare")
    config = CompareConfig(models=[first.out, str(other)], out=str(out), names=["before", "after"], actors=HERE)
    compare(config)
    return config


def _bytes(out: str) -> dict[str, bytes]:
    return {name: (Path(out) / name).read_bytes() for name in ("compare.json", "compare.html", "compare.png")}


def test_bundle_is_evaluated_by_the_settings_of_the_finished_evaluation(
    config: CompareConfig, first: EvaluateConfig, other: Path, tmp_path: Path
) -> None:
    (place,) = (Path(config.out) / "evaluations").iterdir()
    alone = evaluate(dataclasses.replace(first, bundle=str(other), out=str(tmp_path)))
    assert alone.measurements_sha256 == hashlib.sha256((place / "measurements.parquet").read_bytes()).hexdigest()


def test_comparison_shows_values_paired_differences_and_images(config: CompareConfig, first: EvaluateConfig) -> None:
    result = compare(config)  # done already: it reads what is there
    document = json.loads((Path(config.out) / "compare.json").read_text())
    assert document.items() >= result.items()
    assert result["names"] == ["before", "after"]
    rows = {row["metric"]: row for row in result["rows"]}
    scores = evaluate(first)
    for name in ("identity", "loss_right", "loss_gap"):
        ours, theirs = rows[name]["estimates"]
        assert ours["mean"] == scores.metrics[name].mean
        difference = rows[name]["differences"][1]
        assert rows[name]["differences"][0] is None
        assert difference["estimate"]["mean"] == pytest.approx(theirs["mean"] - ours["mean"])
        assert difference["estimate"]["n"] == scores.metrics[name].n
        assert difference["estimate"]["mean"] != 0
    assert rows["identity"]["differences"][1]["subjects"] == 3
    assert any("3 subjects only" in note for note in result["notes"])
    html = (Path(config.out) / "compare.html").read_text()
    assert 'id="images"' in html
    grid = Image.open(Path(config.out) / "compare.png")
    assert grid.width > 168 * 4 + 200  # references, prompt, photo and two models
    assert np.asarray(grid).std() > 20


def test_same_command_repeats_nothing_and_equal_inputs_give_equal_bytes(config: CompareConfig) -> None:
    before = _bytes(config.out)
    image = next(Path(config.out).rglob("images/**/*.png"))
    time = image.stat().st_mtime_ns
    (Path(config.out) / "compare.json").unlink()  # as after a kill before the last write
    compare(config)
    assert _bytes(config.out) == before
    assert image.stat().st_mtime_ns == time


def test_killed_comparison_resumes_with_the_unfinished_evaluation(config: CompareConfig, tmp_path: Path) -> None:
    copy = shutil.copytree(config.out, tmp_path / "copy")
    (place,) = (copy / "evaluations").iterdir()
    for name in ("scores.json", "measurements.parquet", "grid.png"):
        (place / name).unlink()
    for name in ("compare.json", "compare.html", "compare.png"):
        (copy / name).unlink()
    compare(dataclasses.replace(config, out=str(copy)))
    assert _bytes(str(copy)) == _bytes(config.out)


def test_another_comparison_does_not_overwrite(config: CompareConfig) -> None:
    with pytest.raises(ConflictError, match="reference"):
        compare(dataclasses.replace(config, against="after"))


def test_scores_know_their_judge(first: EvaluateConfig) -> None:
    scores = evaluate(first)
    assert scores.judge is not None
    assert {"identity", "identity_margin"} <= scores.judge.metrics.keys()
    assert same_judge(scores, scores) is None


def test_judge_that_drifted_is_refused_before_any_work(
    first: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike.annotators.foreground import EfficientNetLite0

    monkeypatch.setattr(EfficientNetLite0, "_CROP", 0.7)  # a change of the code, with the same revision
    monkeypatch.setattr(calibration, "_JUDGES", Recent(1))  # in a new process
    monkeypatch.setattr(embedders, "_LOADED", Recent(1))
    with pytest.raises(InputError, match=r"the packaged judge .* has drifted"):
        evaluate(dataclasses.replace(first, out=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "images").exists()


def test_evaluations_without_examples_are_compared_without_images(
    config: CompareConfig, first: EvaluateConfig, tmp_path: Path
) -> None:
    (place,) = (Path(config.out) / "evaluations").iterdir()
    earlier = shutil.copytree(place, tmp_path / "earlier")
    (earlier / "examples.json").unlink()
    result = compare(CompareConfig(models=[first.out, str(earlier / "scores.json")], out=str(tmp_path / "out")))
    assert any("earlier has no examples.json" in note for note in result["notes"])
    assert not (tmp_path / "out" / "compare.png").exists()


def test_missing_image_leaves_its_cell_empty_and_is_said(
    config: CompareConfig, first: EvaluateConfig, tmp_path: Path
) -> None:
    (place,) = (Path(config.out) / "evaluations").iterdir()
    damaged = shutil.copytree(place, tmp_path / "damaged")
    images = sorted(damaged.rglob("images/**/*.png"))
    images[0].unlink()
    images[1].write_bytes(b"no image")
    result = compare(CompareConfig(models=[first.out, str(damaged)], out=str(tmp_path / "out")))
    assert sum("The image of damaged for" in note for note in result["notes"]) == 2


def test_other_seed_is_refused_by_name(first: EvaluateConfig, tmp_path: Path) -> None:
    quick = dataclasses.replace(first, seed=3, out=str(tmp_path / "seed-3"), max_samples=4, subjects=1)
    evaluate(quick)
    with pytest.raises(InputError, match=r"seed-3 cannot be compared with .*: their seed differs: 0; 3"):
        compare(CompareConfig(models=[first.out, quick.out], out=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "compare.json").exists()


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        (["{first}", "{tmp}/nowhere"], {}, "neither a finished evaluation"),
        (["{first}", "{first}/scores.json"], {}, "are the same evaluation"),
        (["{other}", "{bundle}"], {}, "without a suite"),
        (["{first}", "{other}"], {"evaluation": {"colour": 1}}, "unknown setting.*colour"),
        (["{first}", "{other}"], {"evaluation": {"steps": 0}}, "steps is below 1"),
        (["{first}", "{other}"], {"evaluation": {"bundle": "x"}}, "that this job chooses"),
        (["{first}"], {}, "2 to 16 models"),
        (["{first}", "{other}"], {"names": ["one"]}, "there are 2 models"),
        (["{first}", "{other}"], {"names": ["one", "one"]}, "two models have one name"),
        (["{first}", "{other}"], {"against": "third"}, "against is not one of the models"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(
    first: EvaluateConfig,
    other: Path,
    bundle: Path,  # noqa: F811
    tmp_path: Path,
    models: list[str],
    settings: dict,
    message: str,
) -> None:
    places = {"first": first.out, "other": other, "bundle": bundle, "tmp": tmp_path}
    with pytest.raises((InputError, ConfigError), match=message):
        compare(CompareConfig(models=[m.format(**places) for m in models], out=str(tmp_path / "out"), **settings))
    assert not (tmp_path / "out").exists()


def test_job_takes_models_before_the_flags(
    run_job: Callable[..., CompletedProcess[str]], config: CompareConfig, first: EvaluateConfig, tmp_path: Path
) -> None:
    (place,) = (Path(config.out) / "evaluations").iterdir()
    done = run_job("evaluate", "compare", first.out, str(place), "--out", str(tmp_path), "--names", "x", "--names", "y")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"2 models compared; the page is compare.html at {tmp_path}"
    assert "identity\n" in done.stdout
    assert "difference " in done.stdout
    refused = run_job("evaluate", "compare", first.out, "--out", str(tmp_path / "one"))
    assert refused.returncode == 2
    assert "a comparison has 2 to 16 models" in refused.stderr
