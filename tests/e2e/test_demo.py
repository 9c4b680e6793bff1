"""The demo's jobs on Ray, S3 and MLflow: what each left, and that it was the checkout's code that did it."""

import io
import json
import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from PIL import Image

from lookalike.data.triplets import read_triplets
from lookalike.evaluation.scores import Scores
from lookalike.registry import resolve
from lookalike.storage import open_store, read_manifest, version_store
from lookalike.tracking.connection import connect
from tests.conftest import REPO
from tests.e2e.conftest import CUSTOMER, METRICS, SUBJECT, VERSION, Demo

pytestmark = pytest.mark.timeout(1500)

RunJob = Callable[..., subprocess.CompletedProcess[str]]
STEPS = [step["name"] for step in yaml.safe_load((REPO / "infra" / "demo" / "demo.yaml").read_text())["steps"]]


def test_every_step_is_in_the_table_with_its_time_and_memory(demo: Demo) -> None:
    table = demo.printed[demo.printed.index("last output") :]
    for step in STEPS:
        row = re.search(rf"^{step} +(\d+) s +(\d+\.\d) GiB   (.+)$", table, re.MULTILINE)
        assert row is not None, table
        assert 0 < float(row.group(2)) < 8
    assert f"{demo.data}/report.html" in demo.printed
    assert [row["step"] for row in json.loads((demo.folder / "timings.json").read_text())] == STEPS


def test_the_snapshot_is_the_checkouts_and_accounts_for_every_image(demo: Demo) -> None:
    dataset = open_store(f"{demo.data}/dataset")
    manifest = read_manifest(dataset)
    assert manifest["code_version"].startswith(VERSION)
    counts = manifest["counts"]
    assert counts["images_in"] == counts["images_kept"] + sum(counts["dropped"].values())
    snapshot = version_store(dataset, 1)
    train, validation = ({t.subject for t in read_triplets(snapshot, split)} for split in ("train", "validation"))
    assert train
    assert validation
    assert train.isdisjoint(validation)


def test_train_workers_ran_the_checkout(demo: Demo) -> None:
    run = open_store(f"{demo.data}/run")
    records = [json.loads(line) for line in run.read(METRICS).splitlines()]
    assert not run.exists("metrics.jsonl")
    assert {record["step"] for record in records} == set(range(20))
    result = _read(f"{demo.data}/run/result.json")
    assert result["steps"] == 20
    assert [stage["stage"] for stage in result["stages"]] == ["mllm", "mllm+references"]
    assert (
        connect(os.environ["MLFLOW_TRACKING_URI"]).get_run(result["tracking_run"]).data.tags["bundle_uri"]
        == result["bundle_uri"]
    )


def test_scores_and_decision_are_there(demo: Demo) -> None:
    scores = Scores.from_json(open_store(f"{demo.data}/scores").read("scores.json"), "scores")
    assert scores.metrics["loss_gap"].n == 16
    decision = _read(f"{demo.data}/promotion/decision.json")
    assert {check["name"] for check in decision["checks"]} >= {"conditions", "loss_gap.low"}
    assert resolve(f"models:/lookalike-mini/{decision['version']}").bundle_uri == f"{demo.data}/run/bundle"


def test_the_customer_has_a_personal_model_and_images(demo: Demo) -> None:
    result = _read(f"{demo.data}/store/customers/{CUSTOMER}/{SUBJECT}/result.json")
    personal = resolve(f"models:/{CUSTOMER}--{SUBJECT}/{result['version']}")
    assert personal.parent == _read(f"{demo.data}/run/result.json")["bundle_sha256"]
    store = open_store(f"{demo.data}/images")
    listed = json.loads(store.read("generations.json"))["images"]
    assert len(listed) >= 4
    for image in listed:
        assert Image.open(io.BytesIO(store.read(image["file"]))).size == (64, 64)
    assert store.exists("contact_sheet.png")


def test_the_page_shows_every_section(demo: Demo) -> None:
    page = open_store(demo.data).read("report.html").decode()
    for section in ("generation", "curation", "training", "decision", "finetune", "cost"):
        assert f'id="{section}"' in page
    assert page.count("data:image/") > 10


def _read(uri: str) -> dict[str, Any]:
    parent, _, name = uri.rpartition("/")
    return dict(json.loads(open_store(parent).read(name)))
