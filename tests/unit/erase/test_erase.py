"""An erasure without MLflow: what goes, what stays, kills at each step, receipts, retention."""

import base64
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookalike import signing
from lookalike.errors import BusyError, ConfigError, InputError, LookalikeError
from lookalike.storage import open_store
from lookalike.storage.claim import claim, write_result
from lookalike.storage.lease import hold
from pipelines.erase import EraseConfig, PlanConfig, SweepConfig, VerifyConfig, erase, plan, sweep, verify_receipt
from pipelines.erase import run as erase_run
from pipelines.erase.scope import Scope
from tests.drawn import photo, world, write_raw

PLACE = "customers/acme/mug/photos-0123456789ab"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The operator's key in the environment; its public key."""
    monkeypatch.setenv(signing.SIGNING_KEY, base64.b64encode(bytes(range(32))).decode())
    made = signing.signing_key()
    assert made is not None
    return signing.public_key_text(made)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two customers, two subjects whose names begin alike, and outputs of jobs elsewhere in it."""
    root = tmp_path / "store"
    for home in ("customers/acme/mug", "customers/acme/mug2", "customers/acme2/mug", "customers/zeta/mug"):
        for name in (
            "raw/ab/shard-000000.tar",
            "photos-1/scores/images/a.png",
            "photos-1/run/bundle/adapter.safetensors",
        ):
            (root / home / name).parent.mkdir(parents=True, exist_ok=True)
            (root / home / name).write_bytes(home.encode())
    _output(root / "generations" / "of-mug", {"model": "models:/acme--mug@champion"})
    _output(root / "generations" / "of-mug2", {"model": "models:/acme--mug2/1"})
    _output(root / "generations" / "of-acme2", {"model": f"{root}/customers/acme2/mug/photos-1/run/bundle"})
    _output(root / "generations" / "of-base", {"model": "models:/lookalike-mini@champion"})
    return root


def _output(place: Path, config: dict[str, Any]) -> None:
    target = open_store(str(place))
    run = claim(target, config)
    target.write("images/one.png", b"an image")
    write_result(target, "generations.json", {"images": []}, run)


def _config(store: Path, **changes: Any) -> EraseConfig:
    settings = {"customer": "acme", "store": str(store), "tracking": "none:", "wait_s": 0} | changes
    return EraseConfig(**settings)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _left(store: Path, but: tuple[str, ...] = ()) -> set[str]:
    return {name for name in _bytes(store) if not name.startswith(("receipts/", *but))}


def test_customer_goes_and_others_stay(store: Path, key: str) -> None:
    before = _bytes(store)
    outcome = erase(_config(store))
    gone = {name for name in before if name.startswith(("customers/acme/", "generations/of-mug"))}
    assert _left(store) == set(before) - gone
    assert all(_bytes(store)[name] == data for name, data in before.items() if name not in gone)
    assert not (store / "customers" / "acme").exists()
    assert outcome.inventory is not None
    assert outcome.inventory.kinds["raw shards"][0] == 2
    assert {output.kind for output in outcome.inventory.outputs} == {"generated images"}
    (store / "customers" / "acme").mkdir()
    assert erase(_config(store)).receipt is None  # nothing is there
    assert not (store / "customers" / "acme").exists()


def test_subject_goes_and_the_one_whose_name_begins_alike_stays(store: Path, key: str) -> None:
    before = _bytes(store)
    erase(_config(store, subject="mug"))
    gone = {name for name in before if name.startswith(("customers/acme/mug/", "generations/of-mug/"))}
    assert len(gone) == 6
    assert _left(store) == set(before) - gone


def test_plan_changes_nothing_and_lists_what_goes(store: Path) -> None:
    before = _bytes(store)
    found = plan(PlanConfig(customer="acme", store=str(store), tracking="none:", subject="mug"))
    assert _bytes(store) == before
    assert sum(count for count, _ in found.kinds.values()) == 3
    assert [output.uri for output in found.outputs] == [open_store(str(store)).child("generations/of-mug").uri]


def test_links_below_the_prefix_are_removed_and_not_followed(store: Path, key: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "secret.txt").write_text("theirs")
    (store / "customers" / "acme" / "mug" / "link").symlink_to(theirs)
    (store / "customers" / "acme" / "other").symlink_to(store / "customers" / "zeta")
    outcome = erase(_config(store))
    assert outcome.inventory is not None
    assert outcome.inventory.kinds["links"][0] == 2
    assert (theirs / "secret.txt").read_text() == "theirs"
    assert (store / "customers" / "zeta" / "mug" / "raw").is_dir()


def test_customer_whose_folder_is_a_link_is_refused(store: Path, key: str) -> None:
    (store / "customers" / "evil").symlink_to(store / "customers" / "zeta")
    before = _bytes(store)
    with pytest.raises(ConfigError, match="symbolic link"):
        erase(_config(store, customer="evil"))
    assert _bytes(store) == before


@pytest.mark.parametrize("name", ["../zeta", "acme/mug", "acme--mug", ".", "", "Acme", "acme/", "a" * 64, ".erasing"])
@pytest.mark.parametrize("field", ["customer", "subject"])
def test_id_that_is_no_id_is_refused(store: Path, key: str, name: str, field: str) -> None:
    with pytest.raises(ConfigError):
        erase(_config(store, **{field: name}))


def test_store_below_another_customer_is_refused(store: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="below a customer's prefix"):
        erase(_config(store / "customers" / "zeta"))


def test_without_a_key_nothing_is_removed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.SIGNING_KEY, raising=False)
    before = _bytes(store)
    with pytest.raises(ConfigError, match="SIGNING_KEY is not set"):
        erase(_config(store))
    assert _bytes(store) == before


def test_receipt_names_nobody_and_is_checked(store: Path, key: str, tmp_path: Path) -> None:
    uri = erase(_config(store, subject="mug")).receipt
    assert uri is not None
    for name, data in _bytes(store / "receipts").items():
        for text in (b"acme", b"mug"):
            assert text not in name.encode() + data, (name, text)
    (tmp_path / "operator.pub").write_text(f"{key}\n")
    trusted = VerifyConfig(receipt=uri, public_key=str(tmp_path / "operator.pub"), customer="acme", subject="mug")
    receipt = verify_receipt(trusted)
    assert receipt["objects"]["raw shards"] == {"count": 1, "bytes": len("customers/acme/mug")}
    assert verify_receipt(VerifyConfig(receipt=uri))["check"]["found"] == 0
    for wrong in ({"customer": "acme2"}, {"subject": "mug2"}):
        with pytest.raises(InputError, match="receipt is not of this"):
            verify_receipt(dataclasses.replace(trusted, **wrong))
    other = base64.b64encode(bytes(32)).decode()
    with pytest.raises(InputError, match="signed by the key"):
        verify_receipt(dataclasses.replace(trusted, public_key=other))
    path = Path(uri.removeprefix("file://"))
    signed = json.loads(path.read_text())
    path.write_text(json.dumps({**signed, "receipt": signed["receipt"].replace('"count":1', '"count":0')}))
    with pytest.raises(InputError, match="signature is not one of this document"):
        verify_receipt(trusted)


def test_working_job_delays_the_erasure_and_is_stopped(store: Path, key: str) -> None:
    place = open_store(str(store)).child(PLACE)
    before = _bytes(store)
    with hold(place.child("lease")) as lease:
        with pytest.raises(BusyError, match="1 jobs still work"):
            erase(_config(store))
        assert set(before) <= _left(store)
        with pytest.raises(BusyError, match="being erased"):
            lease.check()
        with pytest.raises(BusyError, match="being erased"):
            claim(place, {})
    erase(_config(store))
    assert not (store / "customers" / "acme").exists()


def test_setting_that_forbids_the_erasure_leaves_everything_as_it_was(
    store: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(inventory: Any, uri: str | None) -> None:
        raise ConfigError("shared data sets hold photos", fix="name a list")

    before = _bytes(store)
    with monkeypatch.context() as patch:
        patch.setattr(erase_run.shared, "check", forbid)
        with pytest.raises(ConfigError, match="shared data sets"):
            erase(_config(store))
    assert _bytes(store) == before
    claim(open_store(str(store)).child(PLACE), {})  # jobs may start again


@pytest.mark.parametrize(("times", "finishes"), [(1, True), (100, False)])
def test_what_a_job_writes_late_is_removed_or_named(
    store: Path, key: str, times: int, finishes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, writes = open_store(str(store)).child("customers/acme"), []
    remove = erase_run.purge

    def purge(place: Any, keep: str = "", check: Callable[[int], None] = lambda _: None) -> int:
        removed = remove(place, keep, check)
        if place == home and keep.endswith("/") and len(writes) < times:
            home.write("mug/scores/images/late.png", b"late")
            writes.append(1)
        return removed

    monkeypatch.setattr(erase_run, "purge", purge)
    if finishes:
        erase(_config(store))
        assert not (store / "customers" / "acme").exists()
    else:
        with pytest.raises(LookalikeError, match=r"1 things are left: .*late\.png"):
            erase(_config(store))
        assert not list((store / "receipts").glob("*.json"))


def test_two_erasures_at_once_are_refused(store: Path, key: str) -> None:
    home = open_store(str(store)).child("customers/acme")
    home.write(
        ".erasing/erasing.json", json.dumps({"erasure": "0" * 32, "began": "2026-01-01T00:00:00+00:00"}).encode()
    )
    with hold(home.child(".erasing/lease")), pytest.raises(BusyError, match="has been working here"):
        erase(_config(store))
    with pytest.raises(BusyError, match="whole customer is being erased"):
        erase(_config(store, subject="mug"))
    erase(_config(store))
    assert (store / "receipts" / f"{'0' * 32}.json").exists()


STEPS = [
    ("state", "begin"), ("stop", "wait_until_stopped"), ("state", "write_inventory"), ("", "purge"),
    ("caches", "clean_nodes"), ("receipt", "render"), ("receipt", "write"), ("", "_forget"),
]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step_the_same_command_finishes(
    store: Path, key: str, step: tuple[str, str], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {name for name in _bytes(store) if not name.startswith(("customers/acme/", "generations/of-mug"))}
    module = getattr(erase_run, step[0]) if step[0] else erase_run
    with monkeypatch.context() as patch:
        patch.setattr(module, step[1], _killing(getattr(module, step[1]), when))
        assert _in_process(lambda: erase(_config(store))) == -signal.SIGKILL
    erase(_config(store))
    assert _left(store) == others
    (receipt,) = (store / "receipts").glob("*.json")
    found = verify_receipt(VerifyConfig(receipt=str(receipt), customer="acme"))
    assert sum(kind["count"] for kind in found["objects"].values()) == 6


def test_place_that_another_job_took_after_a_kill_stays(store: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(erase_run.receipt, "write", _killing(erase_run.receipt.write, "before"))
        assert _in_process(lambda: erase(_config(store))) == -signal.SIGKILL
    _output(store / "generations" / "of-mug", {"model": "models:/zeta--mug@champion"})
    erase(_config(store))
    assert (store / "generations" / "of-mug" / "images" / "one.png").exists()
    assert len(list((store / "receipts").glob("*.json"))) == 1


@pytest.mark.parametrize("after", [1, 3])
def test_killed_between_two_objects_the_same_command_finishes(
    store: Path, key: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", _killing(os.unlink, "before", of_photos=after))
        assert _in_process(lambda: erase(_config(store))) == -signal.SIGKILL
    left = [name for name in _left(store) if name.startswith("customers/acme/") and "/.erasing/" not in name]
    assert 0 < len(left) < 6
    erase(_config(store))
    (receipt,) = (store / "receipts").glob("*.json")
    found = verify_receipt(VerifyConfig(receipt=str(receipt)))
    assert sum(kind["count"] for kind in found["objects"].values()) == 6


def _killing(function: Callable[..., Any], when: str, of_photos: int = 0) -> Callable[..., Any]:
    calls = []

    def call(*arguments: Any, **named: Any) -> Any:
        if of_photos and not str(arguments[0]).endswith((".tar", ".png", ".safetensors")):
            return function(*arguments, **named)
        calls.append(1)
        result = function(*arguments, **named) if when == "after" or len(calls) <= of_photos else None
        if len(calls) > of_photos:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def _in_process(work: Callable[[], Any]) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def test_claims_that_cannot_be_removed_whole_are_named(store: Path, key: str) -> None:
    claim(open_store(str(store / "generations")), {"model": "models:/acme--mug/1"})  # above other jobs' places
    claim(open_store(str(store / "unknown")), {"model": "models:/acme--mug/1"})
    found = plan(PlanConfig(customer="acme", store=str(store), tracking="none:"))
    assert {Path(place).name for place in found.unclear} == {"generations", "unknown"}
    assert (store / "generations" / "of-base" / "generations.json").exists()


def test_training_run_that_learned_from_the_customer_is_named_and_stays(store: Path, key: str) -> None:
    place = open_store(str(store / "runs" / "shared"))
    claim(place, {"dataset": f"{store}/customers/acme/mug/dataset", "stages": [], "batch_size": 4, "preset": "mini"})
    claim(
        open_store(str(store / "runs" / "mine")), {"dataset": "d", "stages": [], "batch_size": 4, "owner": "acme--mug"}
    )
    outcome = erase(_config(store, search=[str(store / "runs"), str(store / "generations")], subject="mug2"))
    assert outcome.inventory is not None
    assert not outcome.inventory.learned
    outcome = erase(_config(store))
    assert not (store / "runs" / "mine").exists()
    assert (store / "runs" / "shared" / "run.json").exists()
    assert outcome.receipt is not None
    (learned,) = verify_receipt(VerifyConfig(receipt=outcome.receipt))["models_that_learned"]
    assert learned["run"] == place.uri
    assert "[erased] --filters" in learned["train_anew"]
    assert b"acme" not in (store / "receipts" / outcome.receipt.rpartition("/")[2]).read_bytes()


def test_sweep_erases_what_has_expired(store: Path, key: str) -> None:
    past, future = "2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00Z"
    for home, written in {
        "customers/acme/mug/photos-1": past,
        "customers/acme/mug2/photos-1": past,
        "customers/acme/mug2/photos-2": future,
        "customers/acme2/mug/photos-1": None,
        "customers/zeta/mug/photos-1": "tomorrow",
    }.items():
        (store / home).mkdir(exist_ok=True)
        (store / home / "request.json").write_text(json.dumps({"expires_at": written}))
    settings = SweepConfig(store=str(store), tracking="none:", wait_s=0)
    before = _bytes(store)
    listed = {f"{row.customer}/{row.subject}": (row.state, row.why) for row in sweep(settings)}
    assert _bytes(store) == before
    assert {name: state for name, (state, _) in listed.items()} == {
        "acme/mug": "due", "acme/mug2": "kept", "acme2/mug": "kept", "zeta/mug": "failed"
    }  # fmt: skip
    assert "next at 2999" in listed["acme/mug2"][1]
    assert "not a time with its zone: 'tomorrow'" in listed["zeta/mug"][1]
    done = {f"{row.customer}/{row.subject}": row.state for row in sweep(dataclasses.replace(settings, delete=True))}
    assert done["acme/mug"] == "erased"
    gone = {name for name in before if name.startswith(("customers/acme/mug/", "generations/of-mug/"))}
    assert _left(store) == set(before) - gone
    assert "acme/mug" not in {f"{row.customer}/{row.subject}" for row in sweep(settings)}
    marker = {"erasure": "0" * 32, "began": past}
    (store / "customers" / "acme2" / ".erasing").mkdir()
    (store / "customers" / "acme2" / ".erasing" / "erasing.json").write_text(json.dumps(marker))
    begun = next(row for row in sweep(dataclasses.replace(settings, delete=True)) if row.customer == "acme2")
    assert (begun.subject, begun.state) == (None, "erased")
    assert not (store / "customers" / "acme2").exists()


def test_photos_of_raw_shards_are_counted_by_content(store: Path, key: str, tmp_path: Path) -> None:
    write_raw(store / "customers" / "acme" / "mug" / "raw" / "cd", world(1, 3))
    found = plan(PlanConfig(customer="acme", store=str(store), tracking="none:", subject="mug"))
    assert found.photos == 3
    assert found.unreadable == 1  # the shard of the fixture is no tar
    hashes = sorted(hashlib.sha256(photo(0, view).jpeg).hexdigest() for view in range(3))
    lines = "".join(f"sha256:{name}\n" for name in hashes).encode()
    assert found.photos_sha256 == hashlib.sha256(lines).hexdigest()


@pytest.mark.parametrize(
    ("text", "customer", "subject"),
    [
        ("models:/acme--mug@champion", True, True),
        ("models:/acme--mug2/1", True, False),
        ("models:/acme2--mug/1", False, False),
        ("models:/b-acme--mug/1", False, False),
        ("s3://b/customers/acme", True, False),
        ("s3://b/customers/acme/mug", True, True),
        ("s3://b/customers/acme/mug/x", True, True),
        ("s3://b/customers/acme/mug-2/x", True, False),
        ("s3://b/customers/acme-2/mug", False, False),
        ("s3://b/mycustomers/acme/mug", False, False),
        ("acme", False, False),
    ],
)
def test_texts_that_name_a_scope(tmp_path: Path, text: str, customer: bool, subject: bool) -> None:
    assert bool(Scope(str(tmp_path), "acme").pattern.search(f'"{text}"')) == customer
    assert bool(Scope(str(tmp_path), "acme", "mug").pattern.search(f'"{text}"')) == subject
