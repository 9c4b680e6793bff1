"""A customer filled by real jobs is erased while a finetune runs: nothing of it is left, and everything of others."""

import base64
import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lookalike import signing
from lookalike.bundles.build import materialise
from lookalike.errors import ConfigError, LookalikeError
from lookalike.evaluation.gate import Floor, GateConfig
from lookalike.models.presets import load_preset
from lookalike.storage import open_store
from lookalike.tracking.connection import connect
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.loop_config import ValidationConfig
from lookalike.training.workers import WorkerConfig
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.erase import EraseConfig, PlanConfig, VerifyConfig, erase, plan, verify_receipt
from pipelines.erase import run as erasing
from pipelines.finetune import FinetuneConfig, finetune
from pipelines.generate import GenerateConfig, generate
from pipelines.train.run import train
from tests.conftest import REPO, job_environment
from tests.drawn import photo, world, write_raw
from tests.webhook_receiver import receiving

pytestmark = pytest.mark.usefixtures("ray_local")

HERE = ActorConfig(count=0)
STEPS = [PhaseConfig(name="personal", steps=2, conditions="mllm+references", warmup_steps=1)]
EVALUATION = {"max_samples": 8, "subjects": 1, "prompts_per_subject": 1, "stages": ["preset"], "steps": 2}
PASSES = GateConfig(preset="personal", floors=[Floor("loss_right", 0.0)], ceilings=[], against_base=[])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("base") / "bundle")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The operator's public key, whose private key is in the environment; caches are the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(signing.SIGNING_KEY, base64.b64encode(bytes(range(32))).decode())
    made = signing.signing_key()
    assert made is not None
    return signing.public_key_text(made)


def _photos(folder: Path, thing: int) -> Path:
    (folder / "mug").mkdir(parents=True)
    for view in range(4):
        (folder / "mug" / f"{view:02d}.jpg").write_bytes(photo(thing, view).jpeg)
    return folder


def _finetune(base: Path, tmp_path: Path, tracking: str, customer: str, thing: int) -> dict[str, Any]:
    return finetune(
        FinetuneConfig(
            customer=customer,
            subject="mug",
            photos=str(_photos(tmp_path / f"photos-{customer}", thing)),
            store=str(tmp_path / "store"),
            model=str(base),
            gate=PASSES,
            stages=STEPS,
            batch_size=4,
            evaluation=EVALUATION,
            workers=WorkerConfig(num_workers=0),
            actors=HERE,
            tracking=tracking,
        )
    )


def _start_finetune(base: Path, tmp_path: Path, tracking: str) -> subprocess.Popen[str]:
    """A finetune of another subject that would take long, once it trains."""
    arguments = ["--customer", "acme", "--subject", "cup", "--photos", str(tmp_path / "photos-acme")]
    arguments += ["--store", str(tmp_path / "store"), "--model", str(base), "--tracking", tracking]
    stages = '[{"name": "personal", "steps": 5000, "conditions": "mllm+references", "warmup_steps": 1}]'
    arguments += ["--config", str(REPO / "jobs" / "configs" / "finetune-tiny.yaml"), "--stages", stages]
    (tmp_path / "scratch").mkdir()
    environment = job_environment({"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "scratch")})
    job = subprocess.Popen(
        [sys.executable, str(REPO / "jobs" / "finetune.py"), "run", *arguments],
        env=environment, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    cup = tmp_path / "store" / "customers" / "acme" / "cup"
    end = time.monotonic() + 300
    while not list(cup.glob("photos-*/run/lease/*.json")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.2)
    return job


def _files(*folders: Path) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield str(file), file.read_bytes()


def _holding(needles: list[str], *folders: Path) -> list[tuple[str, str]]:
    """Files below ``folders`` whose name or bytes hold one of the needles."""
    return [
        (name, needle)
        for name, data in _files(*folders)
        for needle in needles
        if needle in name.removeprefix(str(folders[0].parent)) or needle.encode() in data
    ]


def test_nothing_is_left_of_a_customer_that_is_erased_while_a_finetune_runs(
    base: Path, tmp_path: Path, mlflow_database: str, key: str
) -> None:
    acme, zeta = (_finetune(base, tmp_path, mlflow_database, name, i) for i, name in enumerate(("acme", "zeta")))
    assert acme["promoted"]
    assert zeta["promoted"]
    store = tmp_path / "store"
    reference = str(tmp_path / "photos-acme" / "mug" / "00.jpg")
    generate(
        GenerateConfig(
            model="models:/acme--mug@champion", out=str(store / "generations" / "one"), prompt=["a mug"],
            reference=[reference], steps=2, actors=HERE, tracking=mlflow_database,
        )
    )  # fmt: skip
    tracking = Path(mlflow_database.removeprefix("sqlite:///")).parent
    given = sorted((tmp_path / "photos-acme").rglob("*.jpg"))
    needles = ["acme", *(hashlib.sha256(file.read_bytes()).hexdigest() for file in given)]
    needles.append(acme["bundle_sha256"])
    places = [store, tracking, tmp_path / "cache", tmp_path / "scratch"]
    before = dict(_files(store / "customers" / "zeta"))
    (run,) = _runs(mlflow_database, "zeta")

    job = _start_finetune(base, tmp_path, mlflow_database)
    assert {needle for _, needle in _holding(needles, *places)} == set(needles)
    outcome = erase(EraseConfig(customer="acme", store=str(store), tracking=mlflow_database))
    said = job.communicate(timeout=60)[0]
    assert job.returncode == 4, said
    assert "erased" in said

    assert _holding(needles, *places) == []
    assert outcome.inventory is not None
    assert outcome.inventory.photos == 4
    assert outcome.inventory.tracked.counts["models"] == 1
    assert outcome.inventory.tracked.counts["runs"] == 2
    assert [output.kind for output in outcome.inventory.outputs] == ["generated images"]
    assert {"checkpoints", "adapters and bundles", "triplets", "raw shards"} <= outcome.inventory.kinds.keys()
    assert outcome.receipt is not None
    receipt = verify_receipt(VerifyConfig(receipt=outcome.receipt, public_key=key, customer="acme"))
    assert receipt["mlflow"]["runs"] == 2

    assert dict(_files(store / "customers" / "zeta")) == before
    assert _runs(mlflow_database, "zeta") == [run]
    assert connect(mlflow_database).get_model_version_by_alias("zeta--mug", "champion").version in (1, "1")
    again = _finetune(base, tmp_path / "again", mlflow_database, "acme", 0)  # a customer may come back
    assert again["version"] == 1


def _runs(tracking: str, experiment: str) -> list[Any]:
    client = connect(tracking)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return [(run.info.run_id, dict(run.data.params), dict(run.data.metrics)) for run in found]


def test_shared_data_and_the_models_that_learned_from_it(base: Path, tmp_path: Path, key: str) -> None:
    store = tmp_path / "store"
    mine = [photo(0, view) for view in range(3)]
    write_raw(store / "customers" / "acme" / "mug" / "raw" / "ab", mine)
    write_raw(store / "shared-raw", world(3, 3))  # thing00 is the customer's
    dataset, listed = str(store / "shared" / "dataset"), str(store / "shared" / "taken-down.txt")
    Path(listed).parent.mkdir()
    Path(listed).write_text("# kept by the operator\nsubject:thing02")
    curate(CurateConfig(raw=str(store / "shared-raw"), dataset=dataset, actors=HERE))
    settings: dict[str, Any] = {
        "stages": STEPS,
        "batch_size": 4,
        "micro_batch_size": 4,
        "validation": ValidationConfig(samples=0),
    }
    settings |= {"workers": WorkerConfig(num_workers=0), "keep_samples": True, "tracking": "none:"}
    run = TrainConfig(dataset=dataset, run=str(store / "runs" / "shared"), base=str(base), **settings)
    trained = train(run)

    config = EraseConfig(customer="acme", store=str(store), tracking="none:")
    with pytest.raises(ConfigError, match="shared data sets hold photos"):
        erase(config)
    assert len(list((store / "customers" / "acme").rglob("*.tar"))) == 1  # nothing was removed
    assert not list((store / "customers").rglob(".erasing"))
    outcome = erase(dataclasses.replace(config, take_down=listed))
    assert outcome.inventory is not None
    (holder,) = outcome.inventory.holders
    assert (holder.dataset, holder.version, holder.images) == (open_store(dataset).uri, 1, 3)
    (learned,) = outcome.inventory.learned
    assert (learned.run, learned.bundle_sha256) == (open_store(run.run).uri, trained["bundle_sha256"])
    text = Path(listed).read_text()
    assert text.startswith("# kept by the operator\nsubject:thing02\n")
    for each in mine:
        assert f"sha256:{hashlib.sha256(each.jpeg).hexdigest()}\n" in text
    assert outcome.receipt is not None
    receipt = verify_receipt(VerifyConfig(receipt=outcome.receipt, public_key=key))
    assert receipt["taken_down"] == 3
    assert "jobs/train.py run" in receipt["models_that_learned"][0]["train_anew"]
    assert (store / "runs" / "shared" / "result.json").exists()

    made = curate(
        CurateConfig(
            raw=str(store / "shared-raw"), dataset=dataset, actors=HERE,
            filters=dataclasses.replace(
                CurateConfig(raw="r", dataset="d").filters,
                taken_down=dataclasses.replace(CurateConfig(raw="r", dataset="d").filters.taken_down, list=listed),
            ),
        )
    )  # fmt: skip
    assert made.manifest["counts"]["dropped"]["taken_down"] == 6


def test_a_killed_erasure_tells_its_webhook_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    photos = tmp_path / "customers" / "acme" / "mug"
    write_raw(photos, [photo(0, view) for view in range(3)])
    config = EraseConfig(customer="acme", subject="mug", store=str(tmp_path), tracking="none:", webhook="https://a.b/c")
    with pytest.raises(ConfigError, match="no valid secret"):
        erase(config)
    assert any(photos.rglob("*.tar")), "nothing was removed"
    with receiving(monkeypatch) as receiver:
        config = dataclasses.replace(config, webhook=receiver.url)
        with monkeypatch.context() as patch:
            patch.setattr(erasing, "_forget", _killed)
            with pytest.raises(KeyboardInterrupt):
                erase(config)
        outcome = erase(config)
    (event,) = receiver.accepted
    assert event["type"] == "finetune.erased"
    assert event["data"] == {"customer": "acme", "subject": "mug", "receipt": outcome.receipt}
    assert verify_receipt(VerifyConfig(receipt=event["data"]["receipt"], public_key=key, customer="acme"))
    assert not list(tmp_path.rglob("*acme*"))


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("subject", ["mug", None])
def test_requests_of_fleets_are_removed_with_their_records(tmp_path: Path, key: str, subject: str | None) -> None:
    folder, store = tmp_path / "requests", tmp_path / "store"
    mine = {
        "summer.v2.yaml": "customer: acme\nsubject: mug\nphotos: s3://acme/mug",
        "again.json": '{"customer": "acme", "subject": "mug"}',
        "escaped.json": '{"customer": "\\u0061cme", "subject": "m\\u0075g"}',
        "broken.yml": 'customer: "acme"\nsubject: mug\nphotos: [',
        "done/summer.v2.0123456789ab.json": '{"customer": "acme", "subject": "mug", "model": "acme--mug"}',
        "done/moved-away.0123456789ab.json": '{"customer": "acme", "subject": "mug", "model": "acme--mug"}',
        "failed/again.json": '{"what": "no such folder", "value": "photos/cup"}',
        "leases/broken/lease": "{}",
    }
    of_hat = {"hat.yaml": "{customer: acme, subject: hat}", "failed/hat.json": "{}"}
    others = {
        "summer.yaml": "customer: zeta\nsubject: mug\nnote: like acme",
        "acme2.yaml": "{customer: acme2, subject: mug}",
        "done/zeta.0123456789ab.json": '{"customer": "zeta", "subject": "mug", "model": "zeta--mug"}',
        "failed/summer.json": "{}",
        "broken2.yaml": "customer: acme2\nsubject: mug [",
    }
    for name, text in {**mine, **of_hat, **others}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    config = EraseConfig("acme", str(store), subject, tracking="none:", requests=[str(folder)])
    expected = len(mine) + (0 if subject else len(of_hat))
    assert plan(config).requests == {open_store(str(folder)).uri: [expected, pytest.approx(500, abs=400)]}
    outcome = erase(config)
    kept = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert kept == set(others) | (set(of_hat) if subject else set())
    assert outcome.receipt is not None
    receipt = verify_receipt(VerifyConfig(receipt=outcome.receipt, public_key=key))
    assert receipt["requests_of_fleets"] == expected
    assert erase(config).receipt is None, "nothing is left to erase"


def test_erasure_by_a_server_is_signed_after_its_operator_collected(
    tmp_path: Path, mlflow_server: str, local_stack: Any, key: str
) -> None:
    store = tmp_path / "store"
    write_raw(store / "customers" / "erased-by-server" / "mug" / "raw" / "ab", [photo(0, 0)])
    client = connect(mlflow_server)
    run = client.create_run(client.create_experiment("erased-by-server")).info.run_id
    config = EraseConfig(customer="erased-by-server", store=str(store), tracking=mlflow_server, wait_s=0)
    with pytest.raises(LookalikeError, match=rf"1 runs in MLflow.*mlflow gc .*--run-ids {run}") as stopped:
        erase(config)
    assert not list((store / "receipts").glob("*.json"))
    assert plan(PlanConfig(customer="erased-by-server", store=str(store), tracking=mlflow_server)).photos == 1
    command = str(stopped.value.fix).partition("mlflow gc ")[2].partition(" (")[0]
    (database,) = local_stack.folder.rglob("mlflow.db")
    arguments = command.replace("DATABASE", f"sqlite:///{database}").split()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_server}
    gc = subprocess.run(
        [sys.executable, "-m", "mlflow", "gc", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert gc.returncode == 0, gc.stderr
    outcome = erase(config)
    assert outcome.receipt is not None
    assert verify_receipt(VerifyConfig(receipt=outcome.receipt, public_key=key))["mlflow"]["runs"] == 1
