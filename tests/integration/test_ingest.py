"""Ingest as a user runs it, with real Ray, files and S3."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.data.images import ImageError, decode
from lookalike.data.shards import BrokenTarError, iter_samples, open_object
from lookalike.errors import ConflictError, InputError
from lookalike.storage import open_store
from pipelines.ingest import IngestConfig, SampleWorldConfig, ingest

SMALL = SampleWorldConfig(subjects=8, views=4, size_px=64)
RunJob = Callable[..., subprocess.CompletedProcess[str]]


def world(raw: Path | str, **settings: Any) -> IngestConfig:
    return IngestConfig(source="sample", raw=str(raw), sample=SMALL, **settings)


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def read(raw: Path) -> tuple[dict[str, dict[str, bytes]], set[str]]:
    """Every complete sample by key, and the keys of incomplete ones."""
    store = open_store(str(raw))
    samples: dict[str, dict[str, bytes]] = {}
    lost: set[str] = set()
    for info in store.list("shard-"):
        try:
            for sample, members in iter_samples(open_object(store, info)):
                samples[sample.key] = members
        except BrokenTarError as error:
            lost |= set(error.lost_keys)
    return samples, lost


@pytest.fixture(scope="module")
def raw(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    ingest(world(folder))
    return folder


def test_sample_world_matches_its_ground_truth(raw: Path) -> None:
    samples, lost = read(raw)
    truth = json.loads((raw / "_truth.json").read_text())
    unreadable = {key for keys in truth["truncated_shards"].values() for key in keys}
    assert samples.keys() | unreadable == truth["photos"].keys()
    assert not samples.keys() & unreadable
    assert lost <= unreadable
    by_bytes: dict[bytes, list[str]] = {}
    for key, members in samples.items():
        by_bytes.setdefault(members["jpg"], []).append(key)
        entry, meta = truth["photos"][key], json.loads(members["json"])
        assert meta["subject"] == entry["subject"]
        assert set(meta) == {"subject", "class", "caption", "source", "licence"}
        if entry["defect"] in ("corrupt", "truncated"):
            with pytest.raises(ImageError):
                decode(members["jpg"])
        else:
            assert (max(decode(members["jpg"]).shape) <= 32) == (entry["defect"] == "tiny")
    copies = {key for keys in by_bytes.values() for key in keys if len(keys) > 1}
    planted = {key for key, entry in truth["photos"].items() if entry["defect"] == "exact_duplicate"}
    assert planted <= copies
    assert len([keys for keys in by_bytes.values() if len(keys) > 1]) == len(planted)


def test_equal_seeds_give_equal_bytes_and_a_missing_shard_is_written_again(raw: Path, tmp_path: Path) -> None:
    config = world(tmp_path)
    first = ingest(config)
    assert shard_bytes(tmp_path) == shard_bytes(raw)
    before = (tmp_path / "shard-000000.tar").stat().st_mtime_ns
    (tmp_path / "shard-000001.tar").unlink()  # as if the job had been killed
    (tmp_path / "ingest.json").unlink()
    assert ingest(config) == first
    assert shard_bytes(tmp_path) == shard_bytes(raw)
    assert (tmp_path / "shard-000000.tar").stat().st_mtime_ns == before
    assert ingest(config) == first


def test_prefix_of_another_run_is_a_conflict(raw: Path) -> None:
    with pytest.raises(ConflictError, match="sample"):
        ingest(IngestConfig(source="sample", raw=str(raw), sample=SampleWorldConfig(subjects=9, views=4, size_px=64)))


def test_a_customers_photos_can_be_ingested_again(ray_local: None, tmp_path: Path) -> None:
    one = SampleWorldConfig(subjects=1, views=5, seed=7, defects=False, size_px=64, shapes=["duck"])
    photos = tmp_path / "photos"
    ingest(IngestConfig(source="sample", raw=str(tmp_path / "raw"), photos=str(photos), sample=one))
    assert sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg")) == [
        f"duck_0700000/{i:02d}.jpg" for i in range(5)
    ]
    result = ingest(IngestConfig(source=photos.as_uri(), raw=str(tmp_path / "raw2")))
    assert result["images"] == 5
    samples, _ = read(tmp_path / "raw2")
    rendered, _ = read(tmp_path / "raw")
    assert [members["jpg"] for members in samples.values()] == [members["jpg"] for members in rendered.values()]
    assert {json.loads(members["json"])["class"] for members in samples.values()} == {"duck"}


def test_error_in_a_ray_task_keeps_its_class_and_message(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / "a" / "0.png")
    (tmp_path / "raw" / "shard-000000.tar").mkdir(parents=True)  # where the task writes
    with pytest.raises(InputError, match="cannot write: Is a directory") as caught:
        ingest(IngestConfig(source=str(tmp_path / "in"), raw=str(tmp_path / "raw")))
    assert type(caught.value) is InputError
    assert not (tmp_path / "raw" / "ingest.json").exists()


def test_job_writes_to_s3(raw: Path, s3_uri: str, s3_server: dict[str, str], run_job: RunJob) -> None:
    flags = ["--sample.subjects", "8", "--sample.views", "4", "--sample.size_px", "64"]
    done = run_job("ingest", "--source", "sample", "--raw", s3_uri, *flags, env=s3_server)
    assert done.returncode == 0, done.stderr
    store = open_store(s3_uri)
    assert {info.key: store.read(info.key) for info in store.list("shard-")} == shard_bytes(raw)


def test_job_prints_the_error_without_a_traceback(tmp_path: Path, run_job: RunJob) -> None:
    done = run_job("ingest", "--source", str(tmp_path / "none"), "--raw", str(tmp_path / "raw"))
    assert done.returncode == 2
    assert "missing or empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "raw").exists()
