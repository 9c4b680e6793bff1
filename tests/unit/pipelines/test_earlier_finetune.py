"""Earlier results of a finetune and of a training run are checked against their bundle and their run."""

import json
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.evaluation.gate import GateConfig, gate_identity
from lookalike.storage import Store, open_store
from lookalike.storage.claim import read_claim, run_once, write_result
from lookalike.training.config import TrainConfig
from pipelines.finetune import FinetuneConfig
from pipelines.finetune.run import RESULT, _earlier_result
from pipelines.train import result as training_result
from tests.integration.test_promotion import bundle
from tests.unit.evaluation.test_gate import OF_THEN

NAME = "acme--mug"


@pytest.fixture
def place(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "customers" / "acme" / "mug"))


@pytest.fixture
def result(place: Store) -> dict[str, Any]:
    """The result of a finetune, with a bundle that has a manifest only."""
    return {
        "customer": "acme",
        "subject": "mug",
        "model": NAME,
        "version": 1,
        "promoted": True,
        "bundle_uri": "file:///before/it/was/moved",
        "bundle_sha256": bundle(place.uri, "run").sha256,
        "scores": "file:///before/scores",
    }


def _read(place: Store) -> dict[str, Any]:
    config = FinetuneConfig(customer="acme", subject="mug", photos="/photos", store="/store")
    return _earlier_result(config, NAME, place, "f")


def test_result_has_the_current_places(place: Store, result: dict[str, Any]) -> None:
    write_result(place, RESULT, result, "f")
    assert _read(place)["bundle_uri"] == place.child("run").child("bundle").uri
    assert _read(place)["scores"] == place.child("scores").uri
    place.write(RESULT, json.dumps(result).encode())  # by an earlier version
    assert _read(place)["bundle_uri"] == place.child("run").child("bundle").uri


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("change", [{"customer": "evil"}, {"model": "evil--mug"}, {"bundle_sha256": "c" * 64}])
def test_result_of_another_finetune_is_refused(
    place: Store, result: dict[str, Any], change: dict[str, Any], sealed: bool
) -> None:
    if sealed:
        write_result(place, RESULT, {**result, **change}, "f")
    else:
        place.write(RESULT, json.dumps({**result, **change}).encode())
    with pytest.raises(InputError, match="the result is of") as refused:
        _read(place)
    assert "run the same command again" in refused.value.fix


def test_unsealed_result_without_its_bundle_is_refused(place: Store, result: dict[str, Any]) -> None:
    place.write(RESULT, json.dumps(result).encode())
    place.delete("run/bundle/bundle.json")
    with pytest.raises(InputError):
        _read(place)


def test_finetune_with_the_defaults_has_the_identity_that_it_had_before_photos_were_held_out(tmp_path: Path) -> None:
    """So that one that was finished then is finished now."""

    def identity(place: str, **changes: Any) -> dict[str, Any]:
        config = FinetuneConfig(customer="acme", subject="mug", photos="/photos", store="/store", **changes)
        store, content = open_store(str(tmp_path / place)), {"gate": gate_identity(config.gate, "personal")}
        run_once(store, RESULT, config, content=content, earlier=str, work=str)
        return dict((read_claim(store) or {})["identity"])

    assert "holdout" not in identity("default")
    assert identity("default")["gate"] == OF_THEN
    assert identity("none", holdout=0)["holdout"] == 0
    assert identity("base", gate=GateConfig())["gate"]["preset"] == "base"


@pytest.mark.parametrize("sealed", [True, False])
def test_training_result_is_checked_against_bundle_and_steps(tmp_path: Path, sealed: bool) -> None:
    store = open_store(str(tmp_path / "run"))
    made = bundle(str(tmp_path), "run")
    config = TrainConfig(dataset="/data", run=store.uri, tracking="none:")
    result = {
        "bundle_uri": "file:///x",
        "bundle_sha256": made.sha256,
        "steps": config.total_steps,
        "tracking_run": "",
        "stages": [],
    }

    def read(**change: Any) -> dict[str, Any]:
        if sealed:
            write_result(store, training_result.RESULT, {**result, **change}, "f")
        else:
            store.write(training_result.RESULT, json.dumps({**result, **change}).encode())
        return training_result.earlier_result(config, store, "f")

    assert read()["bundle_uri"] == made.uri
    assert "seal" in json.loads(store.read(training_result.RESULT))
    for change in ({"bundle_sha256": "c" * 64}, *([] if sealed else [{"steps": 1}])):
        with pytest.raises(InputError, match="the result"):
            read(**change)
