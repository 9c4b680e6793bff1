"""A request from its zip archive to the verdict, on a real Ray and MLflow: events, webhooks, cancel and resume."""

import io
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lookalike.bundles.build import materialise
from lookalike.errors import ConflictError, InputError
from lookalike.models.presets import load_preset
from lookalike.progress import cancel as cancellation
from lookalike.progress.cancel import CancelledError
from lookalike.progress.webhooks import read_deliveries
from lookalike.registry import Registry
from lookalike.storage import Store, open_store, read_json
from lookalike.training import stopping
from lookalike.training.checkpoint import newest
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.workers import WorkerConfig
from pipelines.actors import ActorConfig
from pipelines.finetune import CancelConfig, FinetuneConfig, StatusConfig, cancel, finetune, status
from tests.drawn import draw
from tests.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.usefixtures("ray_local")

PLANTED = b"PLANTED-47.3769N"
_GPS = 0x8825


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("base") / "bundle")


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A server that fails twice."""
    with receiving(monkeypatch) as made:
        made.statuses = [500, 503]
        yield made


def _archive(path: Path, views: int = 6) -> Path:
    """A flat zip of photos as a phone writes them: turned by their EXIF, with the place where they were taken."""
    with zipfile.ZipFile(path, "w") as archive:
        for view in range(views):
            exif = Image.Exif()
            exif[0x0112] = 6 if view % 2 else 1
            exif[0x010F] = PLANTED.decode()
            exif.get_ifd(_GPS)[29] = PLANTED.decode()
            image = Image.fromarray(draw(0, view))
            buffer = io.BytesIO()
            image = image.transpose(Image.Transpose.ROTATE_90) if view % 2 else image
            image.save(buffer, "JPEG", exif=exif.tobytes(), comment=PLANTED, quality=92)
            archive.writestr(f"IMG {view}.JPG", buffer.getvalue())
            archive.writestr(f"__MACOSX/._IMG {view}.JPG", b"x")
        archive.writestr("broken.jpg", buffer.getvalue()[:1500])
        archive.writestr("../../evil.jpg", buffer.getvalue())
    return path


def _config(base: Path, folder: Path, tracking: str, steps: int = 4) -> FinetuneConfig:
    return FinetuneConfig(
        customer="acme",
        subject="mug",
        photos=str(_archive(folder / "photos.zip")),
        store=str(folder / "store"),
        model=str(base),
        class_name="polygon",
        stages=[PhaseConfig(name="personal", steps=steps, conditions="mllm+references", warmup_steps=1)],
        batch_size=2,
        micro_batch_size=2,
        evaluation={"max_samples": 4, "subjects": 1, "prompts_per_subject": 1, "stages": ["preset"], "steps": 2},
        workers=WorkerConfig(num_workers=0),
        actors=ActorConfig(count=0),
        tracking=tracking,
    )


def _place(config: FinetuneConfig) -> Store:
    home = open_store(config.store).child("customers").child(config.customer).child(config.subject)
    return home.child(read_json(home, "current.json")["place"])


def _of(config: FinetuneConfig) -> dict[str, str]:
    return {"customer": config.customer, "subject": config.subject, "store": config.store}


def test_request_from_zip_to_verdict_with_events_and_signed_webhooks(
    base: Path, tmp_path: Path, mlflow_database: str, receiver: Receiver
) -> None:
    accepted = receiver.accepted
    config = replace(_config(base, tmp_path, mlflow_database), webhook=receiver.url, key="k1", expires_after="30d")
    result = finetune(config)
    place, found = _place(config), status(StatusConfig(**_of(config)))
    states = [event["state"] for event in found["events"]]
    end = "promoted" if result["promoted"] else "refused"
    steps = [event["data"]["step"] for event in found["events"] if event["state"] == "step"]
    assert steps == [1, 2, 3, 4]
    before = ["accepted", "checked", "queued", "started"]
    assert states == [*before, *["step"] * 4, "samples", "evaluated", end]
    assert found["events"][1]["data"]["photos"] == {"train": 4, "held out": 2, "refused": 1}
    given = {row["name"]: row["reason"] for row in read_json(place.child("given"), "photos.json")["photos"]}
    assert "undecodable" in given["broken.jpg"]
    assert "leads out" in given["../../evil.jpg"]

    deadline = time.monotonic() + 30
    while len(accepted) < len(states) and time.monotonic() < deadline:
        finetune(config)  # what was not delivered at the end of the job is delivered by the next start
        time.sleep(1)
    assert [event["type"] for event in accepted] == [f"finetune.{state}" for state in states]
    assert {each.state for each in read_deliveries(place).values()} == {"delivered"}

    for file in (path for path in tmp_path.rglob("*") if path.is_file() and path != tmp_path / "photos.zip"):
        assert PLANTED not in file.read_bytes(), file
    run = read_json(place.child("run"), "tracking.json")["tracking_run"]
    assert Registry(mlflow_database)._client.get_run(run).data.tags["lookalike.finetune"] == end
    with pytest.raises(ConflictError, match="the key belongs to another request"):
        finetune(replace(config, seed=1))
    assert cancel(CancelConfig(**_of(config))) == end
    place.write(
        "request.json", place.read("request.json").replace(found["expires_at"].encode(), b"2020-01-01T00:00:00Z")
    )
    with pytest.raises(InputError, match="the request expired at 2020"):
        finetune(config)


def test_cancel_stops_training_within_a_step_and_resume_ends_it(
    base: Path, tmp_path: Path, mlflow_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cancellation, stopping):
        monkeypatch.setattr(module, "_POLL_S", 0.05)
    config = _config(base, tmp_path, mlflow_database, steps=60)
    failed: list[BaseException] = []

    def job() -> None:
        try:
            finetune(config)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=job)
    thread.start()
    while thread.is_alive() and not _has_begun(config):
        time.sleep(0.2)
    assert cancel(CancelConfig(**_of(config))) == "cancelled"
    thread.join(120)
    assert [type(error) for error in failed] == [CancelledError]
    place = _place(config)
    reached = newest(place.child("run"))
    assert 0 < reached < 60
    assert not place.exists("result.json")
    with pytest.raises(CancelledError, match="--resume"):
        finetune(config)
    assert [event["state"] for event in status(StatusConfig(**_of(config)))["events"]].count("cancelled") == 1

    events = place.child("events")
    before = {info.key for info in events.list()}
    assert finetune(replace(config, resume=True))["version"] == 1
    steps = [read_json(events, info.key) for info in events.list() if info.key not in before]
    assert min(each["data"]["step"] for each in steps if each["state"] == "step") > reached


def _has_begun(config: FinetuneConfig) -> bool:
    try:
        return status(StatusConfig(**_of(config)))["state"] == "step"
    except InputError:
        return False


def test_all_photos_alike_is_an_error_that_is_an_event_too(base: Path, tmp_path: Path, mlflow_database: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    data = io.BytesIO()
    Image.fromarray(draw(0, 0)).save(data, "JPEG")
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(data.getvalue())
    config = replace(_config(base, tmp_path, mlflow_database), photos=str(folder))
    with pytest.raises(InputError, match="no usable pair"):
        finetune(config)
    found = status(StatusConfig(**_of(config)))
    assert (found["state"], "no usable pair" in found["events"][-1]["data"]["reason"]) == ("failed", True)
