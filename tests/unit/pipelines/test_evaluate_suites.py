"""Evaluations on suites in folders: what is measured, and what a killed one repeats."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookalike.annotators.embedder import load_embedder
from lookalike.data.images import decode, encode_jpeg
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.evaluation import metrics
from lookalike.evaluation.gate import decide
from lookalike.evaluation.gate_config import Floor, GateConfig
from lookalike.evaluation.metrics.base import Task, at_size_of
from lookalike.pixels import crop_resize
from pipelines.actors import ActorConfig
from pipelines.evaluate import EvaluateConfig, evaluate, worker
from tests.drawn import draw

SUBJECTS = {"can": "can", "mug": "mug", "mug2": "mug"}
LIST = """Classes

subject_name,class
can,can
mug,mug
mug2,mug

Object Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
]
"""


class Count:
    """A metric of all images of a subject: how many there are, and of how many prompts."""

    labels: ClassVar[Mapping[str, str]] = {"images": "images", "prompts": "prompts"}

    @classmethod
    def create(cls, settings: Any, device: str) -> "Count":
        return cls()

    def __call__(self, images: Sequence[np.ndarray], tasks: Sequence[Task]) -> Mapping[str, float]:
        assert len({task.subject for task in tasks}) == 1
        return {"images": float(len(images)), "prompts": float(len({task.prompt for task in tasks}))}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """DreamBench in small: three subjects with three photos, two prompts."""
    folder = tmp_path / "suite"
    for number, name in enumerate(SUBJECTS):
        (folder / name).mkdir(parents=True)
        for view in range(3):
            (folder / name / f"{view:02d}.jpg").write_bytes(encode_jpeg(draw(number, view, 96)))
    (folder / "prompts_and_classes.txt").write_text(LIST)
    return folder


@pytest.fixture
def config(bundle_dir: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateConfig:
    """An evaluation of 2 images for each of 3 x 2 prompts, in three batches."""
    monkeypatch.setattr(metrics, "SET_METRICS", (Count,))
    return EvaluateConfig(
        bundle=str(bundle_dir),
        suite=str(suite),
        out=str(tmp_path / "out"),
        images_per_prompt=2,
        stages=["preset"],
        steps=1,
        image_batch_size=4,
        actors=ActorConfig(count=0),
    )


def rows_of(config: EvaluateConfig) -> list[dict[str, Any]]:
    """The rows of an evaluation's measurements."""
    return list(pq.read_table(Path(config.out) / "measurements.parquet").to_pylist())


def files_of(config: EvaluateConfig) -> dict[str, bytes]:
    """The bytes of measurements, images and grid."""
    out = Path(config.out)
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("scores.json", "run.json")
    }


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each batch that a pipeline generates."""
    batches: list[int] = []
    generate = SubjectPipeline.__call__

    def counting(self: Any, prompts: Sequence[str], *arguments: Any, **named: Any) -> Any:
        batches.append(len(prompts))
        return generate(self, prompts, *arguments, **named)

    monkeypatch.setattr(SubjectPipeline, "__call__", counting)
    return batches


def test_a_dreambench_checkout_is_measured_with_ceiling_and_floors(config: EvaluateConfig, suite: Path) -> None:
    scores = evaluate(config)
    names = {"identity", "identity_margin", "ceiling/identity", "floor/identity", "hard_floor/identity"}
    assert {name for name in scores.metrics if "identity" in name and "position" not in name} == names
    assert {"images", "prompts", "position/identity", "hard_position/identity"} <= scores.metrics.keys()
    assert {name: scores.metrics[name].n for name in names} == {
        "identity": 12,
        "identity_margin": 12,
        "ceiling/identity": 9,  # three photos of each subject
        "floor/identity": 12,
        "hard_floor/identity": 6,  # of the two mugs
    }
    assert (scores.metrics["images"].mean, scores.metrics["prompts"].mean, scores.metrics["images"].n) == (4, 2, 3)
    assert scores.suite.version is None
    assert not list(Path(config.out).glob("units/*"))
    embed = load_embedder(config.embedder, "cpu")
    photos = [decode((suite / "can" / f"{view:02d}.jpg").read_bytes()) for view in range(3)]
    measured = sorted(r["value"] for r in rows_of(config) if (r["metric"], r["subject"]) == ("ceiling/identity", "can"))
    reference, *others = photos[1], photos[0], photos[2]  # 01.jpg is the published reference of `can`
    expected = [similarity(embed, image, at_size_of(image, [reference])) for image in _cropped(others)]
    (cropped,) = _cropped([reference])
    expected.append(similarity(embed, cropped, at_size_of(cropped, others)))
    assert measured == pytest.approx(sorted(expected), abs=1e-6)


def similarity(embed: Any, image: np.ndarray, photos: Sequence[np.ndarray]) -> float:
    rows = embed([image, *photos])
    return float((rows[1:] @ rows[0]).mean())


def _cropped(photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [crop_resize(photo, 64, 64) for photo in photos]


def test_a_killed_evaluation_repeats_one_batch_at_most(
    config: EvaluateConfig, tmp_path: Path, generated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    expected = evaluate(whole)
    assert generated == [4, 4, 4]
    keep = worker.write_rows
    generated.clear()
    killed = dataclasses.replace(config, out=str(tmp_path / "killed"))
    for at in (1, 4):  # after a batch was generated, before its rows were kept; and in the stand-ins

        def kill(*arguments: Any, at: int = at) -> None:
            if arguments[2] == at:
                raise KeyboardInterrupt
            keep(*arguments)

        monkeypatch.setattr(worker, "write_rows", kill)
        with pytest.raises(KeyboardInterrupt):
            evaluate(killed)
        assert not (Path(killed.out) / "scores.json").exists()
    monkeypatch.setattr(worker, "write_rows", keep)
    assert evaluate(killed).metrics == expected.metrics
    assert generated == [4, 4, 4], "no image is generated twice"
    assert files_of(killed) == files_of(whole)


def test_kept_rows_that_were_changed_or_are_of_another_run_are_measured_again(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep, calls = worker.write_rows, []

    def kill(*arguments: Any) -> None:
        calls.append(arguments[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        keep(*arguments)

    monkeypatch.setattr(worker, "write_rows", kill)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    units = sorted((Path(config.out) / "units").iterdir())
    assert [unit.name for unit in units] == ["000000.parquet", "000001.parquet", "000002.parquet"]
    units[0].write_bytes(units[1].read_bytes())  # of another unit
    units[1].write_bytes(b"damaged")
    calls[:] = [-1] * 10
    expected = evaluate(config).metrics
    del calls[:10]
    assert calls[:2] == [0, 1]
    assert 2 not in calls
    assert caplog.text.count("a unit is measured again") == 2
    assert evaluate(dataclasses.replace(config, out=str(tmp_path / "whole"))).metrics == expected


def test_images_of_another_run_are_not_measured(config: EvaluateConfig, tmp_path: Path, generated: list[int]) -> None:
    first = dataclasses.replace(config, subjects=1)
    evaluate(first)
    for name in ("run.json", "scores.json"):
        (Path(first.out) / name).unlink()
    generated.clear()
    again = evaluate(dataclasses.replace(first, seed=1))
    assert generated == [4]
    assert again.metrics == evaluate(dataclasses.replace(first, seed=1, out=str(tmp_path / "other"))).metrics


def test_a_corrupt_photo_is_a_row_and_the_other_cases_are_measured(
    config: EvaluateConfig, suite: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (suite / "can" / "02.jpg").write_bytes(b"<html>no photo</html>")
    scores = evaluate(config)
    rows = rows_of(config)
    reasons = {row["metric"] for row in rows if row["metric"].startswith("unreadable: ")}
    assert len(reasons) == 1
    assert "can/02.jpg does not decode" in reasons.pop()
    assert scores.metrics["identity"].n == 12
    assert scores.metrics["ceiling/identity"].n == 8


def test_a_corrupt_reference_is_an_error_until_it_is_repaired(config: EvaluateConfig, suite: Path) -> None:
    good = (suite / "can" / "01.jpg").read_bytes()
    for name in ("can", "mug"):
        for view in range(3):
            (suite / name / f"{view:02d}.jpg").write_bytes(f"no photo {name} {view}".encode())
    with pytest.raises(InputError, match="cases cannot be read, at most 25% may"):
        evaluate(config)
    (suite / "can" / "01.jpg").write_bytes(good)
    with pytest.raises(ConflictError, match="another inputs"):  # the suite has changed: not the run that began
        evaluate(config)


def test_an_image_of_two_subjects_is_compared_with_both(config: EvaluateConfig, suite: Path) -> None:
    listed = suite / "pairs.json"
    listed.write_text('[{"prompt": "a can and a mug", "image_paths": ["can/00.jpg", "mug/00.jpg"]}]')
    scores = evaluate(dataclasses.replace(config, suite=str(listed), images_per_prompt=None, subjects=5))
    assert scores.metrics["identity"].n == 1
    (row,) = [row for row in rows_of(config) if row["metric"] == "identity"]
    assert (row["case"], row["subject"]) == ("00000", "can+mug")
    image = decode((Path(config.out) / "images" / "preset" / "00000.png").read_bytes())
    photos = [decode((suite / name / "00.jpg").read_bytes()) for name in ("can", "mug")]
    embed = load_embedder(config.embedder, "cpu")
    assert row["value"] == pytest.approx(similarity(embed, image, at_size_of(image, photos)), abs=1e-6)


def test_more_references_than_the_bundle_reads_is_an_error(config: EvaluateConfig, suite: Path) -> None:
    (suite / "suite.json").write_text('[{"prompt": "all", "references": ["can/00.jpg", "mug/00.jpg", "mug2/00.jpg"]}]')
    with pytest.raises(ConfigError, match="3 references for '00000', and this bundle reads at most 2"):
        evaluate(dataclasses.replace(config, suite_format="prompts"))
    assert not (Path(config.out) / "images").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "{suite}/can"}, "no complete snapshot, and no suite in a folder .*dreambench needs"),
        ({"suite": "{suite}/nowhere"}, "no complete snapshot, and no suite"),
        ({"suite": "{suite}/nowhere.json"}, "no such object"),
        ({"suite_format": "dreambench_plus"}, "the suite is not usable.*dreambench_plus needs captions"),
        ({"suite_format": "curated"}, "no complete snapshot"),
        ({"split": "train"}, "has no split 'train'"),
    ],
)
def test_what_is_not_a_suite_is_named(
    config: EvaluateConfig, suite: Path, change: dict[str, str], message: str
) -> None:
    changes: dict[str, Any] = {name: value.format(suite=suite) for name, value in change.items()}
    with pytest.raises((InputError, ConfigError), match=message):
        evaluate(dataclasses.replace(config, **changes))


def test_a_list_in_another_encoding_is_an_error_that_names_the_line(config: EvaluateConfig, suite: Path) -> None:
    (suite / "prompts_and_classes.txt").write_bytes(LIST.replace("in the snow", "caf\u00e9").encode("latin-1"))
    with pytest.raises(InputError, match=r"line 11 is not UTF-8.*prompts_and_classes\.txt"):
        evaluate(config)


def test_a_suite_without_prompts_is_an_error_before_any_work(config: EvaluateConfig, suite: Path) -> None:
    whole = (suite / "prompts_and_classes.txt").read_text()
    (suite / "prompts_and_classes.txt").write_text(whole.partition("Object Prompts")[0])
    with pytest.raises(InputError, match=r"no prompts for object subjects.*prompts_and_classes\.txt.*restore"):
        evaluate(config)
    assert not Path(config.out).exists()
    (suite / "prompts_and_classes.txt").write_text(whole)
    assert evaluate(config).metrics["identity"].n == 12, "the same command works when the list is restored"


def test_a_subject_with_one_photo_has_no_ceiling_and_the_gate_says_why(config: EvaluateConfig, suite: Path) -> None:
    for name in SUBJECTS:
        for view in (1, 2):
            (suite / name / f"{view:02d}.jpg").unlink()
    with pytest.raises(InputError, match=r"subject 'can' has 1 photo, at least 2 are needed.*suite/can.*add photos"):
        evaluate(config)
    prompts = [{"prompt": f"a {name} in the snow", "references": [f"{name}/00.jpg"]} for name in SUBJECTS]
    (suite / "suite.json").write_text(json.dumps(prompts))
    scores = evaluate(dataclasses.replace(config, suite_format="prompts"))
    assert scores.metrics["identity"].n == 6
    assert scores.metrics["floor/identity"].n == 6
    assert not {"ceiling/identity", "position/identity"} & scores.metrics.keys()
    gate = GateConfig(floors=[Floor("position/identity", above=0.25)], ceilings=[], against_base=[])
    (check,) = (check for check in decide(scores, None, gate).checks if check.metric == "position/identity")
    assert not check.passed
    assert "position/identity was not measured" in check.why


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ({"clip": "nowhere/at-all"}, "CLIP model"),
        ({"dino": "nowhere/at-all"}, "DINO model"),
        ({"embedder": "nowhere/at-all"}, "embedder"),
        ({"metrics": {"safety": {"model": "nowhere/at-all", "unsafe": ["nsfw"]}}}, "model of safety"),
        ({"metrics": {"aesthetic": {"model": "nowhere/at-all"}}}, "model of aesthetic"),
    ],
)
def test_a_missing_model_of_the_judge_is_an_error_that_leaves_no_trace(
    config: EvaluateConfig, setting: dict[str, Any], kind: str
) -> None:
    with pytest.raises(ConfigError, match=rf"there is no such {kind}.*nowhere/at-all.*use a folder, or a Hub id"):
        evaluate(dataclasses.replace(config, **setting))
    assert not Path(config.out).exists(), "the same --out can be used with another model"
