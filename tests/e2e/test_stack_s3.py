"""The demo's jobs on SeaweedFS and an MLflow server: `s3://` everywhere, one command after the other."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from lookalike.registry import resolve
from lookalike.storage import open_store
from lookalike.tracking.connection import connect
from tests.e2e.conftest import ROOT

RunJob = Callable[..., subprocess.CompletedProcess[str]]

# Twenty steps teach nothing that a gate should let pass; what is tested here is the way, not the model.
_LENIENT = ["--gate.floors", "[{metric: loss_gap, bound: n, above: 7}]"]


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("submitted")
def test_from_a_bundle_to_a_customers_images(run_job: RunJob, cluster_environment: dict[str, str]) -> None:
    def run(name: str, *arguments: str, exit_code: int = 0) -> str:
        done = run_job(name, *arguments, env=cluster_environment)
        assert done.returncode == exit_code, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    tracking = cluster_environment["MLFLOW_TRACKING_URI"]
    dataset, bundle = f"{ROOT}/dataset", f"{ROOT}/run/bundle"
    run_of_training = _read(f"{ROOT}/run", "result.json")["tracking_run"]
    assert connect(tracking).get_run(run_of_training).data.tags["bundle_uri"] == bundle

    evaluation = ["--config", "jobs/configs/evaluate-tiny.yaml", "--bundle", bundle, "--suite", dataset]
    run("evaluate", *evaluation, "--out", f"{ROOT}/scores")
    run("evaluate", *evaluation, "--out", f"{ROOT}/probe", "--conditions", "shuffled")
    assert _read(f"{ROOT}/scores", "scores.json")["bundle"]["sha256"]

    # A probe with shuffled conditions is refused.
    probe = ["--model", "lookalike-mini", "--scores", f"{ROOT}/probe", "--log", f"{ROOT}/promotion-log"]
    run("promote", *probe, "--out", f"{ROOT}/refused", "--require-promoted", exit_code=3)
    refused = _read(f"{ROOT}/refused", "decision.json")
    assert not refused["promoted"]
    assert "conditions" in [check["name"] for check in refused["checks"] if not check["passed"]]

    promotion = ["--model", "lookalike-mini", "--scores", f"{ROOT}/scores", "--out", f"{ROOT}/promotion"]
    assert "is champion" in run("promote", *promotion, *_LENIENT)
    champion = resolve("models:/lookalike-mini@champion", tracking)
    assert champion.bundle_uri == bundle

    run("ingest", "--source", "sample", "--sample.seed", "4", "--sample.subjects", "1", "--sample.defects", "false",
        "--raw", f"{ROOT}/customer", "--photos", f"{ROOT}/photos")  # fmt: skip
    subject = next(open_store(f"{ROOT}/photos").list()).key.partition("/")[0]
    run("finetune", "--config", "jobs/configs/finetune-tiny.yaml", "--customer", "acme", "--subject", subject,
        "--photos", f"{ROOT}/customer", "--model", "models:/lookalike-mini@champion",
        "--store", f"{ROOT}/store", *_LENIENT)  # fmt: skip
    personal = resolve(f"models:/acme--{subject}@champion", tracking)
    assert personal.parent == champion.bundle_sha256

    run("generate", "--model", f"models:/acme--{subject}@champion", "--reference", f"{ROOT}/photos/{subject}",
        "--prompt", "a toy on snow", "--steps", "4", "--out", f"{ROOT}/images")  # fmt: skip
    (image,) = _read(f"{ROOT}/images", "generations.json")["images"]
    assert open_store(f"{ROOT}/images").read(image["file"]).startswith(b"\x89PNG")


def _read(uri: str, key: str) -> dict[str, Any]:
    return dict(json.loads(open_store(uri).read(key)))
