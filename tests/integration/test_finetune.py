"""A finetune from photos to a decision, on a real Ray and MLflow: held-out photos never reach training."""

import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from lookalike.bundles.build import materialise
from lookalike.data.triplets import read_triplets
from lookalike.errors import ConflictError, InputError
from lookalike.evaluation.gate import Floor, GateConfig
from lookalike.evaluation.scores import Scores
from lookalike.models.presets import load_preset
from lookalike.storage import Store, open_store, version_store
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.workers import WorkerConfig
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.finetune import FinetuneConfig, finetune
from pipelines.promote import ExplainConfig, explain
from pipelines.report import ReportConfig, report
from tests.drawn import photo, world, write_raw

pytestmark = pytest.mark.usefixtures("ray_local")

HERE = ActorConfig(count=0)
EVALUATION = {"max_samples": 8, "subjects": 1, "prompts_per_subject": 2, "stages": ["preset"], "steps": 2}
EVALUATION |= {"prompts": "dreambench"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("base") / "bundle")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of other subjects."""
    folder = tmp_path_factory.mktemp("others")
    raw = write_raw(folder / "raw", [each for each in world(4, 4) if each.subject != "thing00"])
    curate(CurateConfig(raw=str(raw), dataset=str(folder / "dataset"), actors=HERE))
    return folder / "dataset"


def _write_photos(folder: Path, views: list[int]) -> Path:
    """Photos of one subject, ``mug/NN.jpg``; a view may be repeated."""
    (folder / "mug").mkdir(parents=True)
    for number, view in enumerate(views):
        (folder / "mug" / f"{number:02d}.jpg").write_bytes(photo(0, view).jpeg)
    return folder


def _config(base: Path, others: Path, folder: Path, tracking: str, views: list[int]) -> FinetuneConfig:
    return FinetuneConfig(
        customer="acme",
        subject="mug",
        photos=str(_write_photos(folder / "photos", views)),
        store=str(folder / "store"),
        model=str(base),
        distractors=str(others),
        stages=[PhaseConfig(name="personal", steps=2, conditions="mllm+references", warmup_steps=1)],
        batch_size=4,
        evaluation=EVALUATION,
        workers=WorkerConfig(num_workers=0),
        actors=HERE,
        tracking=tracking,
    )


def _place(config: FinetuneConfig) -> Store:
    home = open_store(config.store).child("customers").child("acme").child("mug")
    return home.child(next(info.key for info in home.list("photos-")).split("/")[0])


def _images_in(packs: Path) -> set[str]:
    found = set()
    for pack in packs.glob("*.tar"):
        with tarfile.open(pack) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found.add(hashlib.sha256(file.read()).hexdigest())
    return found


def test_personal_model_is_judged_on_photos_that_training_never_saw(
    base: Path, others: Path, tmp_path: Path, mlflow_database: str
) -> None:
    config = _config(base, others, tmp_path, mlflow_database, list(range(6)))
    result = finetune(config)
    place = _place(config)
    assert result["held_out"] == 2
    assert result["verdict"].startswith("Promoted" if result["promoted"] else "Refused")

    given = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / "photos").rglob("*.jpg")}
    local = tmp_path / "store" / "customers" / "acme" / "mug" / place.uri.rsplit("/", 1)[1]
    trained = _images_in(local / "dataset" / "shards")  # drawn photos are stored as they are
    suite = read_triplets(version_store(place.child("held-out"), 1), "validation")
    held_out = {triplet.target_image for triplet in suite}
    assert len(held_out) == 2
    assert held_out | trained == given
    assert not held_out & trained

    scores = Scores.from_json(place.read("scores/scores.json"), "scores.json")
    assert scores.config["split"] == "validation"
    assert scores.suite.uri == place.child("held-out").uri
    cases = {triplet.triplet_id for triplet in suite}
    images = {Path(info.key).stem.rpartition("-p")[0] for info in place.list("scores/images/")}  # by its prompts
    assert images <= cases
    assert images
    assert scores.prompts == "dreambench"

    before = place.read("promotion/decision.json")
    assert finetune(config) == result
    assert place.read("promotion/decision.json") == before
    page = tmp_path / "page.html"
    report(ReportConfig(out=str(page), finetune=str(local)))
    assert "2 of the photos were kept from training" in page.read_text()
    assert result["verdict"].split(":")[0] in page.read_text()
    shown = explain(ExplainConfig("acme--mug", result["version"], tracking=mlflow_database))
    assert shown["evidence"]["suite"]["split"] == "validation"
    assert shown["evidence"]["gate"]["preset"] == "personal"


def test_without_held_out_photos_the_gate_says_so(
    base: Path, others: Path, tmp_path: Path, mlflow_database: str
) -> None:
    gate = GateConfig(preset="personal", floors=[Floor("loss_right", 0.0)], ceilings=[], against_base=[])
    config = _config(base, others, tmp_path, mlflow_database, list(range(4)))
    result = finetune(dataclasses.replace(config, holdout=0, gate=gate))
    checks = json.loads(_place(config).read("promotion/decision.json"))["checks"]
    said = next(check for check in checks if check["name"] == "photos")
    assert (result["held_out"], result["promoted"], said["passed"]) == (0, True, True)
    assert "trained on" in said["why"]
    with pytest.raises(ConflictError, match="holdout"):
        finetune(dataclasses.replace(config, gate=gate))


def test_too_few_usable_photos_to_hold_one_out_is_an_error_before_training(
    base: Path, others: Path, tmp_path: Path, mlflow_database: str
) -> None:
    config = _config(base, others, tmp_path, mlflow_database, [0, 0, 1, 1])
    with pytest.raises(InputError, match=r"2 of 4 photos can be used.*--holdout 0"):
        finetune(config)
    assert not list(_place(config).list("run/"))
