"""Whole curations on a real Ray, with the default embedder."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from skimage import data as photographs

from lookalike.data.triplet_files import load_images
from lookalike.data.triplets import read_triplets
from lookalike.errors import ConfigError, InputError
from lookalike.storage import list_versions, open_store, version_store
from lookalike.storage.lease import hold
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.blurry import Blurry
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.taken_down import TakenDown
from pipelines.curate.raw import RawListing, list_raw
from tests.conftest import REPO, job_environment
from tests.drawn import Photo, draw, jpeg, photo, world, write_raw

PLANTED = {
    "copy": "exact_duplicate", "again": "near_duplicate", "half": "undecodable", "tiny": "too_small",
    "stranger": "off_subject", "lonely": "single_photo", "cut": "truncated_shard",
}  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six things in four views each, and one image of each planted defect."""
    stranger = Photo("stranger", jpeg(photographs.chelsea()), "thing02")
    photos = world(6, 4)
    photos += [
        photos[0].under("copy"), Photo("again", jpeg(draw(1, 1), 70), "thing01"),
        Photo("half", photos[9].jpeg[:2000], "thing02"), Photo("tiny", jpeg(draw(3, 1, 40)), "thing03"), stranger,
        photo(20, 0).under("lonely", "thing20"), photo(4, 7).under("cut"),
    ]  # fmt: skip
    folder = write_raw(tmp_path_factory.mktemp("curate") / "raw", photos, per_shard=8)
    last = sorted(folder.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes().removesuffix(bytes(512))[: -10240 - 1024])
    return folder


def config_of(raw: Path, dataset: Path, **settings: Any) -> CurateConfig:
    return CurateConfig(raw=str(raw), dataset=str(dataset), **{"actors": ActorConfig(count=0), **settings})


# Without an embedder a curation run takes half the time; used if it does not matter how photos are paired.
BLIND = FiltersConfig(skip=["near_duplicate", "off_subject"], no_pair=NoPair(min_similarity=0.0))
BLIND_FLAGS = (
    "--embedder",
    "none",
    "--filters.skip",
    "[near_duplicate,off_subject]",
    "--filters.no_pair.min_similarity",
    "0",
)


def blind(raw: Path, dataset: Path, **settings: Any) -> CurateConfig:
    return config_of(raw, dataset, embedder="none", **{"filters": BLIND, **settings})


def contents(dataset: Path, version: str = "v0001") -> dict[str, bytes]:
    folder = dataset / version
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def snapshot(ray_local: None, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of an uninterrupted curation run."""
    dataset = tmp_path_factory.mktemp("curated") / "dataset"
    assert curate(config_of(raw, dataset)).new
    return dataset


def test_exactly_the_planted_defects_are_dropped_for_their_reasons(snapshot: Path) -> None:
    rows = pq.read_table(snapshot / "v0001" / "images").to_pylist()
    dropped = {row["key"]: row["drop_reason"] for row in rows if row["drop_reason"]}
    assert dropped == PLANTED
    manifest = json.loads((snapshot / "v0001" / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["images_in"] == len(rows) == 24 + len(PLANTED)
    assert counts["dropped"] == Counter(PLANTED.values())
    assert counts["images_in"] == counts["images_kept"] + sum(counts["dropped"].values())


def test_triplets_are_pairs_of_one_subject_in_one_split(snapshot: Path) -> None:
    version = version_store(open_store(str(snapshot)), 1)
    rows = pq.read_table(snapshot / "v0001" / "images").to_pylist()
    images = {row["sha256"]: row for row in rows if row["drop_reason"] is None}
    triplets = read_triplets(version)
    counts = json.loads(version.read("manifest.json"))["counts"]["triplets"]
    assert Counter(triplet.split for triplet in triplets) == counts
    sides = {split: {t.subject for t in triplets if t.split == split} for split in counts}
    assert not sides["train"] & sides["validation"]
    assert len(sides["validation"]) >= 2
    for triplet in triplets:
        members = [triplet.target_image, *triplet.reference_images]
        assert len(set(members)) == len(members)
        assert {images[content]["subject"] for content in members} == {triplet.subject}
        assert 0.4 <= min(triplet.reference_similarities) <= max(triplet.reference_similarities) <= 0.95
        assert triplet.prompt == images[triplet.target_image]["caption"]
    target, references = load_images(version, triplets[0])
    assert target.shape == (160, 160, 3)
    assert target.dtype == np.uint8
    assert len(references) == len(triplets[0].reference_images)


def test_the_manifest_has_the_hash_of_every_file(snapshot: Path) -> None:
    from pipelines.curate.rows import sha256

    files = contents(snapshot)
    manifest = json.loads(files.pop("manifest.json"))
    del files["claim.json"]
    listed = dict(manifest["files"])
    for table in manifest["tables"].values():
        for name in table["lists"]:
            rows = pq.read_table(snapshot / "v0001" / name).to_pylist()
            listed |= {row["name"]: row["sha256"] for row in rows}
    packs = {f"shards/{path.name}": path.read_bytes() for path in (snapshot / "shards").iterdir()}
    assert listed == {name: sha256(data) for name, data in (files | packs).items()}


def test_the_job_exports_a_snapshot(
    snapshot: Path, tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_job("curate", "export", "--dataset", str(snapshot), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"exported \d+ triplets of \d+ subjects, \d+ images .* 1 train \+ 1 validation shards", done.stdout
    )
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert written.keys() == {"train-000000.tar", "validation-000000.tar", "export.json", "run.json"}
    again = run_job("curate", "export", "--dataset", str(snapshot), "--output", str(tmp_path / "out"))
    assert again.stdout == done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == written


def test_a_run_without_new_inputs_publishes_nothing(snapshot: Path, raw: Path) -> None:
    before = contents(snapshot)
    result = curate(config_of(raw, snapshot))
    assert (result.version, result.new) == (1, False)
    assert contents(snapshot) == before
    assert list_versions(open_store(str(snapshot))) == [1]


def test_a_new_shard_and_another_threshold_make_versions_and_index_only_what_is_new(
    ray_local: None, tmp_path: Path
) -> None:
    raw, dataset = write_raw(tmp_path / "raw", world(4, 3), per_shard=6), tmp_path / "dataset"
    config = blind(raw, dataset)
    curate(config)
    rows = {path: path.stat().st_mtime_ns for path in (dataset / "work" / "rows").rglob("*.parquet")}
    second = replace(config, filters=replace(config.filters, blurry=Blurry(min_sharpness=13)))
    assert curate(second).version == 2
    assert {path: path.stat().st_mtime_ns for path in (dataset / "work" / "rows").rglob("*.parquet")} == rows
    write_raw(tmp_path / "more", world(6, 3)[12:])
    (tmp_path / "more" / "shard-000000.tar").rename(raw / "shard-000002.tar")
    third = curate(second)
    assert (third.version, third.manifest["parent"], third.manifest["counts"]["images_in"]) == (3, 2, 18)
    after = {path: path.stat().st_mtime_ns for path in (dataset / "work" / "rows").rglob("*.parquet")}
    assert len(after) == len(rows) + 1
    assert after.items() > rows.items()
    assert json.loads((dataset / "v0001" / "manifest.json").read_text())["counts"]["images_in"] == 12


def test_an_unreadable_shard_is_reported_at_the_end_and_indexed_alone_later(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, dataset = write_raw(tmp_path / "raw", world(6, 3), per_shard=6), tmp_path / "dataset"
    monkeypatch.setattr("pipelines.curate.run.list_raw", _as_if_the_first_had_shrunk)
    with pytest.raises(
        InputError, match=r"1 of 3 raw shards cannot be read.*shard-000000\.tar.*the others are indexed"
    ):
        curate(blind(raw, dataset))
    assert list_versions(open_store(str(dataset))) == []
    rows = {path: path.stat().st_mtime_ns for path in (dataset / "work" / "rows").rglob("*.parquet")}
    assert len(rows) == 2
    monkeypatch.undo()
    assert curate(blind(raw, dataset)).manifest["counts"]["images_in"] == 18
    after = {path: path.stat().st_mtime_ns for path in (dataset / "work" / "rows").rglob("*.parquet")}
    assert len(after) == 3
    assert after.items() > rows.items()


def _as_if_the_first_had_shrunk(*arguments: Any) -> RawListing:
    listing = list_raw(*arguments)
    first, *others = listing.shards
    return replace(listing, shards=[replace(first, size=first.size + 512), *others])


def test_taken_down_images_are_removed_and_snapshots_that_held_them_are_listed(
    snapshot: Path, raw: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(snapshot, dataset)
    (tmp_path / "list.txt").write_text("subject:thing03\n# a letter\nkey:thing01-0\n")
    taken_down = FiltersConfig(taken_down=TakenDown(str(tmp_path / "list.txt")))
    result = curate(config_of(raw, dataset, filters=taken_down))
    assert result.version == 2
    assert result.manifest["counts"]["dropped"]["taken_down"] == 6  # with the tiny photo of thing03
    assert result.manifest["taken_down"]["held_by"] == {"v0001": 5}
    assert "v0001 (5 photos)" in (dataset / "v0002" / "report.html").read_text()
    rows = pq.read_table(dataset / "v0002" / "images").to_pylist()
    assert {row["key"] for row in rows if row["drop_reason"] == "taken_down"} >= {"thing01-0", "thing03-1"}
    assert {triplet.subject for triplet in read_triplets(version_store(open_store(str(dataset)), 2))}.isdisjoint(
        {"thing03"}
    )
    with pytest.raises(ConfigError, match="removed images would come back"):
        curate(config_of(raw, dataset))


def test_no_usable_pair_is_an_error_that_counts_drops_by_filter(ray_local: None, tmp_path: Path) -> None:
    photos = [photo(subject, 0) for subject in range(3)] + [Photo("tiny", jpeg(draw(0, 1, 30)), "thing00")]
    raw = write_raw(tmp_path / "raw", photos)
    with pytest.raises(
        InputError, match=r"no usable pair among 4 images of 3 subjects; dropped: single_photo 3, too_small 1"
    ):
        curate(config_of(raw, tmp_path / "dataset"))
    assert list_versions(open_store(str(tmp_path / "dataset"))) == []


@pytest.fixture(scope="module")
def blind_snapshot(ray_local: None, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of an uninterrupted curation run without an embedder."""
    dataset = tmp_path_factory.mktemp("blind") / "dataset"
    assert curate(blind(raw, dataset)).new
    return dataset


def test_the_place_of_raw_shards_does_not_change_the_snapshot(raw: Path, blind_snapshot: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(blind_snapshot, tmp_path / "dataset")
    moved = shutil.copytree(raw, tmp_path / "moved")  # with times, as an archive or a synchronised folder keeps them
    assert not curate(blind(moved, dataset)).new
    other = write_raw(tmp_path / "other", world(3, 4))
    second = curate(blind(other, dataset))
    assert second.new
    assert second.version == 2
    assert second.manifest["inputs"]["raw"] == open_store(str(other)).uri


@pytest.mark.parametrize("after", ["work/rows/*/*.parquet", "v0001/claim.json", "shards/*.tar"])
def test_a_killed_run_resumes_to_the_same_snapshot(blind_snapshot: Path, raw: Path, tmp_path: Path, after: str) -> None:
    """Kill the job (SIGKILL) as soon as a stage has written its first file."""
    dataset = tmp_path / "dataset"
    argv = [sys.executable, str(REPO / "jobs" / "curate.py"), "run", "--raw", str(raw), "--dataset", str(dataset)]
    argv += ["--actors.count", "1", *BLIND_FLAGS]
    with (tmp_path / "log").open("w") as log_file:
        job = subprocess.Popen(argv, env=job_environment({}), stdout=log_file, stderr=log_file, cwd=REPO)
        deadline = time.monotonic() + 180
        while not any(dataset.glob(after)) and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    assert any(dataset.glob(after)), (tmp_path / "log").read_text()
    curate(blind(raw, dataset))
    assert contents(dataset) == contents(blind_snapshot)
    assert contents(dataset, "shards") == contents(blind_snapshot, "shards")


def test_the_job_on_s3(
    s3_uri: str, s3_server: dict[str, str], raw: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for path in sorted(raw.glob("*.tar")):
        open_store(f"{s3_uri}/raw").upload(path.name, path)
    arguments = [
        "--raw",
        f"{s3_uri}/raw",
        "--dataset",
        f"{s3_uri}/dataset",
        "--plan.max-references",
        "3",
        "--actors.count",
        "1",
    ]
    done = run_job("curate", "run", *arguments, env=s3_server)
    assert done.returncode == 0, done.stderr
    assert "published v0001" in done.stdout
    version = version_store(open_store(f"{s3_uri}/dataset"), 1)
    assert max(len(triplet.reference_images) for triplet in read_triplets(version)) == 3
    again = run_job("curate", "run", *arguments, env=s3_server)
    assert again.returncode == 0
    assert "nothing new: still v0001" in again.stdout


def test_a_second_run_on_the_dataset_exits_with_busy(
    raw: Path, tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    dataset = tmp_path / "dataset"
    with hold(open_store(str(dataset / "work" / "lease"))):
        other = run_job("curate", "run", "--raw", str(raw), "--dataset", str(dataset))
    assert other.returncode == 4
    assert f"process {os.getpid()} on" in other.stderr
    assert list_versions(open_store(str(dataset))) == []


def test_the_job_prints_errors(tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    nothing = run_job("curate", "run", "--raw", str(tmp_path / "nothing"), "--dataset", str(tmp_path / "dataset"))
    assert nothing.returncode == 2
    assert "the raw prefix is missing or empty" in nothing.stderr
    unknown = run_job("curate", "run", "--raw", "a", "--dataset", "b", "--filters.blury.min_sharpness", "3")
    assert unknown.returncode == 2
    assert "blury" in unknown.stderr
    assert not (tmp_path / "dataset").exists()


def test_passed_over_objects_and_take_down_matches_are_in_manifest_report_and_output(
    tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    raw, dataset = write_raw(tmp_path / "raw", world(4, 3), per_shard=6), tmp_path / "dataset"
    first, second = sorted(raw.glob("*.tar"))
    first.write_bytes(first.read_bytes() + second.read_bytes())  # joined: the second half would be lost
    second.unlink()
    (raw / "photos.zip").write_bytes(b"PK")
    (raw / "outside.tar").symlink_to(tmp_path)
    (tmp_path / "list.txt").write_text("subject:thing03\nkey:thing01-0 # a letter\n")
    arguments = ["--raw", str(raw), "--dataset", str(dataset), "--actors.count", "0", *BLIND_FLAGS]
    arguments += ["--filters.taken_down.list", str(tmp_path / "list.txt")]
    refused = run_job("curate", "run", *arguments)
    assert refused.returncode == 2
    assert "1 of 2 entries of the take-down list name no image (['key:thing01-0 # a letter'])" in refused.stderr
    flag = refused.stderr[refused.stderr.index("--filters.taken_down.allow_unmatched") :].splitlines()[0]
    done = run_job("curate", "run", *arguments, *shlex.split(flag))  # the advice, to the letter
    assert done.returncode == 0, done.stderr
    line = "passed over: 2 of 3 objects: link_outside 1 (such as 'outside.tar'), unsupported_archive 1"
    assert line in done.stdout
    assert "taken down: 'key:thing01-0 # a letter' names 0 images" in done.stdout
    assert "taken down: 'subject:thing03' names 3 images" in done.stdout
    manifest = json.loads((dataset / "v0001" / "manifest.json").read_text())
    report = json.loads((dataset / "v0001" / "report.json").read_text())
    assert manifest["taken_down"]["matched"] == {"subject:thing03": 3, "key:thing01-0 # a letter": 0}
    assert manifest["taken_down"]["unmatched"] == ["key:thing01-0 # a letter"]
    assert manifest["counts"]["images_in"] == 12
    assert manifest["passed_over"] == report["passed_over"]
    assert manifest["passed_over"]["members"] == {"found": 24, "read": 24, "reasons": {}}
    assert [row["reason"] for row in report["funnel"][:4]] == [
        *("objects_found", "link_outside", "unsupported_archive", "members_found"),
    ]  # fmt: skip
    (raw / "later.txt").write_text("hello")
    again = run_job("curate", "run", *arguments)
    assert "nothing new: still v0001" in again.stdout, again.stderr
    assert "passed over: 3 of 4 objects: link_outside 1 (such as 'outside.tar'), not_a_shard 1" in again.stdout
