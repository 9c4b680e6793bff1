"""A fleet of finetunes on a real Ray and MLflow: adapters as alone, requests that fail alone, customers in turns."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lookalike.bundles.build import materialise
from lookalike.models.presets import load_preset
from lookalike.storage import open_store
from lookalike.storage.lease import hold
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.finetune import FinetuneConfig, finetune
from pipelines.fleet import FleetConfig, fleet
from tests.drawn import photo, world, write_raw

pytestmark = pytest.mark.usefixtures("ray_local")

HERE = ActorConfig(count=0)
SHORT: dict[str, Any] = {
    "stages": [{"name": "personal", "steps": 3, "conditions": "mllm+references", "warmup_steps": 1}],
    "batch_size": 4,
    "evaluation": {"max_samples": 8, "subjects": 1, "prompts_per_subject": 1, "stages": ["preset"], "steps": 2},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("base") / "bundle")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    raw = write_raw(folder / "raw", [each for each in world(4, 4) if each.subject == "thing03"])
    curate(CurateConfig(raw=str(raw), dataset=str(folder / "dataset"), actors=HERE))
    return folder / "dataset"


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Write photos of a drawn thing, and its request."""

    def write(name: str, customer: str, thing: int, photos: int = 5, **settings: Any) -> dict[str, Any]:
        folder = tmp_path / "photos" / name / "mug"
        folder.mkdir(parents=True)
        for view in range(photos):
            (folder / f"{view:02d}.jpg").write_bytes(photo(thing, view).jpeg)
        request = {
            "customer": customer,
            "subject": "mug",
            "photos": str(folder.parent),
            "seed": thing,
            **SHORT,
            **settings,
        }
        (tmp_path / "requests").mkdir(exist_ok=True)
        (tmp_path / "requests" / f"{name}.yaml").write_text(yaml.safe_dump(request))
        return request

    return write


@pytest.fixture
def config(base: Path, others: Path, tmp_path: Path, mlflow_database: str) -> FleetConfig:
    places = {"requests": str(tmp_path / "requests"), "store": str(tmp_path / "store"), "distractors": str(others)}
    return FleetConfig(model=str(base), tracking=mlflow_database, at_once=3, **places)


def _adapter(uri: str) -> torch.Tensor:
    file = next(Path(open_store(uri).uri.removeprefix("file://")).rglob("*adapter*.safetensors"))
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(file).items())])


def test_each_request_gets_the_adapter_that_it_gets_alone(
    config: FleetConfig, request_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for number, customer in enumerate(("acme", "bolt")):
        request_of(customer, customer, number)
    alone = request_of("carl", "carl", 2, adapter={"rank": 4})
    (tmp_path / "requests" / "notes.txt").write_text("no request")
    request_of("few", "dent", 2, photos=3)
    (tmp_path / "requests" / "own-store.yaml").write_text("{customer: eve, subject: mug, photos: x, store: /etc}")
    (tmp_path / "requests" / "typo.yaml").write_text("{customer: eve, subject: mug, photos: x, stepz: 3}")

    done = fleet(config)
    assert done["results"].keys() == {"acme", "bolt", "carl"}
    assert done["failed"].keys() == {"few", "own-store", "typo"}
    assert "4 to 20" in done["failed"]["few"]
    assert "does not set store" in done["failed"]["own-store"]
    for name, result in done["results"].items():
        assert (result["customer"], result["model"]) == (name, f"{name}--mug")
        assert f"/customers/{name}/mug/" in result["bundle_uri"]

    plain = FinetuneConfig(
        **{**_typed(alone), "customer": "alone", "store": config.store, "model": config.model},
        distractors=config.distractors,
        actors=HERE,
        tracking=config.tracking,
    )
    expected = _adapter(finetune(plain)["bundle_uri"])
    found = _adapter(done["results"]["carl"]["bundle_uri"])
    assert (found - expected).norm() < 1e-4 * expected.norm()

    record = json.loads((tmp_path / "requests" / "failed" / "few.json").read_text())
    assert record.keys() == {"request_sha256", "error", "what", "value", "fix"}
    again = fleet(config)  # neither what is done nor a recorded failure is tried again
    assert again == {"results": {}, "failed": {}, "busy": [], "earlier": 3}


def _typed(request: dict[str, Any]) -> dict[str, Any]:
    from lookalike.models.presets import LoraConfig
    from lookalike.training.curriculum import PhaseConfig
    from lookalike.training.workers import WorkerConfig

    stages = [PhaseConfig(**each) for each in request["stages"]]
    workers = WorkerConfig(num_workers=0)
    return {**request, "stages": stages, "adapter": LoraConfig(**request["adapter"]), "workers": workers}


def test_requests_of_another_fleet_are_left_to_it(
    config: FleetConfig, request_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    request_of("held", "acme", 0)
    with hold(open_store(config.requests).child("leases").child("held")):
        done = fleet(config)
    assert done == {"results": {}, "failed": {}, "busy": ["held"], "earlier": 0}


def test_the_requests_of_a_worker_that_is_killed_resume_and_each_is_done_once(
    config: FleetConfig, request_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    steps = [{"name": "personal", "steps": 8, "conditions": "mllm+references", "warmup_steps": 1}]
    for number, customer in enumerate(("acme", "bolt")):
        request_of(customer, customer, number, stages=steps, priority=number)
    killed = threading.Thread(target=_kill_a_worker_in_training, args=(tmp_path,))
    killed.start()
    done = fleet(replace(config, workers=1, poll_s=0.5))
    killed.join()
    assert done["results"].keys() == {"acme", "bolt"}
    assert not done["failed"]
    assert {result["version"] for result in done["results"].values()} == {1}


def _kill_a_worker_in_training(folder: Path) -> None:
    """Kill the process that holds a lease once a run has a step in its history."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if list((folder / "store").rglob("metrics.jsonl")):
            lease = next((folder / "requests" / "leases").rglob("*.json"))
            os.kill(json.loads(lease.read_text())["pid"], signal.SIGKILL)
            return
        time.sleep(0.1)
    raise AssertionError("nothing trained")
