"""Evaluation, pretraining and generation with single files that cannot be read."""

import dataclasses
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookalike.data.images import encode_png
from lookalike.data.shards import write_tar
from lookalike.data.triplets import read_triplets
from lookalike.errors import InputError
from lookalike.evaluation.suites import chosen_rows, samples_of
from lookalike.storage import open_store
from pipelines.actors import ActorConfig
from pipelines.evaluate import EvaluateConfig, evaluate, suite_source
from pipelines.generate import GenerateConfig, generate
from pipelines.pretrain import PretrainConfig
from pipelines.pretrain.subjects import read_subjects
from tests.drawn import photo
from tests.poisoned import ROWS, rotten, write_snapshot


def config_of(bundle: Path, dataset: str, out: Path) -> EvaluateConfig:
    return EvaluateConfig(
        bundle=str(bundle),
        suite=dataset,
        out=str(out),
        max_samples=30,
        subjects=7,
        prompts_per_subject=5,
        stages=["preset"],
        steps=1,
        actors=ActorConfig(count=0),
    )


def test_cases_that_cannot_be_read_are_named_and_the_others_measured(
    bundle_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = [*[None] * 26, "target is no image", "long caption", "placeholder", "prompt is not UTF-8"]
    dataset = write_snapshot(tmp_path / "dataset", [None], held_out)
    with caplog.at_level(logging.WARNING):
        scores = evaluate(config_of(bundle_dir, dataset, tmp_path / "out"))
    assert re.search("4 of 59 cases are not measured: sample012.*; photo ", caplog.text)
    assert "row 29 is left out" in caplog.text
    assert not any(name.startswith("unreadable") for name in scores.metrics)
    rows = pq.read_table(tmp_path / "out" / "measurements.parquet").to_pylist()
    unreadable = {row["case"] for row in rows if row["metric"].startswith("unreadable: triplet sample027: the target")}
    measured = {row["case"] for row in rows} - unreadable
    assert "sample027#0" in unreadable
    assert {"sample028#0", "sample029#0"} <= measured | unreadable
    assert len(measured) > 30
    assert (tmp_path / "out" / "grid.png").is_file()


def test_a_suite_that_is_mostly_unreadable_is_an_error(bundle_dir: Path, tmp_path: Path) -> None:
    dataset = write_snapshot(tmp_path / "dataset", [None], [None, None, *["target is no image"] * 6])
    with pytest.raises(InputError, match=r"cases cannot be read, at most 25% may: sample.*does not decode"):
        evaluate(config_of(bundle_dir, dataset, tmp_path / "out"))


def test_invalid_rows_are_left_out_of_a_suite(tmp_path: Path) -> None:
    dataset = write_snapshot(tmp_path, [None, *ROWS, None])
    whole = read_triplets(open_store(f"{dataset}/v0001"), "train")
    ids = [triplet.triplet_id for triplet in whole]
    assert {"sample000", f"sample{len(ROWS) + 1:03d}"} <= set(ids)
    assert all(isinstance(t.prompt, str) and isinstance(t.subject, str) and t.reference_offsets for t in whole)
    nothing = write_snapshot(tmp_path / "none", ["prompt is null", "id is null"])
    with pytest.raises(InputError, match="no row of the snapshot is a valid triplet"):
        read_triplets(open_store(f"{nothing}/v0001"), "train")


def test_a_suite_of_a_large_split_is_made_of_chosen_rows(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_snapshot(tmp_path / "dataset", [None], [None] * 300)
    config = config_of(bundle_dir, dataset, tmp_path / "out")
    source = suite_source.snapshot(dataset)
    version = open_store(f"{dataset}/v0001")
    held_out = read_triplets(version, "validation")
    whole = suite_source.samples_in(source, "validation", config)
    assert whole == samples_of(held_out, version.uri), "a small split is used whole"
    monkeypatch.setattr(suite_source, "TRIPLETS", 128)
    samples = suite_source.samples_in(source, "validation", config)
    expected = {held_out[row].triplet_id for row in chosen_rows(300, 128, seed=0)}
    assert {sample.sample_id for sample in samples} == expected
    assert len(samples) == len(expected) <= 128


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Raw shards of 80 subjects, five of whose samples cannot be used, and one that breaks off."""
    samples = [photo(subject, 0, 64).sample() for subject in range(80)]
    good = samples[0][1]
    samples += [
        ("rotten", {**good, "jpg": rotten(good["jpg"])}),
        ("nojson", {"jpg": good["jpg"]}),
        ("deep", {**good, "json": b"[" * 100_000}),
        ("list", {**good, "json": b"[1]"}),
        ("small", {"png": encode_png(np.zeros((1, 1, 3), np.uint8)), "json": good["json"]}),
    ]
    (tmp_path / "raw").mkdir()
    write_tar(tmp_path / "raw" / "shard-000000.tar", samples)
    write_tar(tmp_path / "raw" / "shard-000001.tar", samples[:3])
    whole = (tmp_path / "raw" / "shard-000001.tar").read_bytes()
    (tmp_path / "raw" / "shard-000001.tar").write_bytes(whole[:4000])
    return tmp_path / "raw"


def test_pretraining_names_unreadable_samples(raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = PretrainConfig(part="vae", raw=str(raw), out=str(tmp_path / "out"))
    with caplog.at_level(logging.WARNING):
        train, held_out = read_subjects(config)
    assert sum(len(subject.images) for subject in [*train, *held_out]) in (80, 81)
    assert "6 of " in caplog.text
    assert "shard-000000.tar/rotten" in caplog.text
    (raw / "shard-000002.tar").write_bytes(b"no tar")
    for number in range(3, 9):
        (raw / f"shard-{number:06d}.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"samples cannot be read, at most 10% may: .*shard-000000.tar/rotten"):
        read_subjects(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<html>", "cannot be used"),
        (encode_png(np.zeros((1, 1, 3), np.uint8)), "the reference has 1x1 pixels"),
        (encode_png(np.zeros((40, 20_000, 3), np.uint8)), "the reference has 20000x40 pixels"),
        (b"", "cannot be used"),
    ],
)
def test_a_bad_reference_is_named_before_anything_is_generated(
    bundle_dir: Path, tmp_path: Path, data: bytes, what: str
) -> None:
    (tmp_path / "good.png").write_bytes(encode_png(np.zeros((64, 64, 3), np.uint8)))
    (tmp_path / "bad.png").write_bytes(data)
    config = GenerateConfig(
        model=str(bundle_dir),
        out=str(tmp_path / "out"),
        prompt=["a red mug"] * 50,
        reference=[str(tmp_path / "good.png"), str(tmp_path / "bad.png")],
    )
    with pytest.raises(InputError, match=f"{what}.*bad.png.*name another file"):
        generate(config)
    assert not (tmp_path / "out" / "images").exists()
