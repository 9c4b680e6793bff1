import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike.errors import ConfigError
from lookalike.storage import open_store
from pipelines.curate.config import CurateConfig, LabelsConfig
from pipelines.curate.index import IndexWork, RawShard, ShardIndexer, read_images
from pipelines.curate.inputs import Inputs
from pipelines.curate.raw import list_raw
from pipelines.curate.rows import sha256
from pipelines.curate.tables import read_table
from pipelines.curate.work import StageWork
from tests.drawn import draw, jpeg, photo, world, write_raw
from tests.unit.curate.conftest import GridEmbedder

JPEG = jpeg(draw(0, 0))
CONFIG = CurateConfig(raw="raw", dataset="dataset")


def tar_of(*members: tuple[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer


def rows_of(*members: tuple[str, bytes]) -> list[dict[str, Any]]:
    return [row for row, _ in read_images(tar_of(*members), "s.tar", CONFIG)]


def test_a_row_has_the_place_and_labels_of_its_image() -> None:
    metadata = {"subject": "cup", "class": "mug", "caption": " a mug ", "licence": "CC0", "source": "here", "more": 1}
    tar = tar_of(("k.jpg", JPEG), ("k.json", json.dumps(metadata).encode()))
    ((row, pixels),) = read_images(tar, "s.tar", CONFIG)
    assert {name: row[name] for name in ("key", "shard", "subject", "class_name", "caption", "licence", "source")} == {
        "key": "k", "shard": "s.tar", "subject": "cup", "class_name": "mug", "caption": "a mug", "licence": "CC0",
        "source": "here",
    }  # fmt: skip
    assert tar.getvalue()[row["offset"] : row["offset"] + row["length"]] == JPEG
    assert (row["sha256"], row["width"], row["height"], row["error"], row["cut"]) == (sha256(JPEG), 160, 160, "", False)
    assert pixels is not None
    assert pixels.shape == (160, 160, 3)


@pytest.mark.parametrize(
    ("document", "subject"),
    [
        (b'{"subject": 0}', "0"),
        (b'{"subject": null}', ""),
        (b'{"caption": "x"}', ""),
        (b"{broken", ""),
        (b"[1, 2]", ""),
        (b"\xff\xfe", ""),
        (b'{"subject": "caf\xc3\xa9 \\ud800"}', "café \\ud800"),
    ],
)
def test_unusual_metadata_values_become_labels(document: bytes, subject: str) -> None:
    (row,) = rows_of(("k.jpg", JPEG), ("k.json", document))
    assert (row["subject"], row["error"]) == (subject, "")


def test_labels_come_from_json_then_from_the_text_and_the_key() -> None:
    members = [("cup-03.jpg", JPEG), ("cup-03.txt", b" a red cup\n"), ("x.jpg", JPEG), ("x.json", b'{"item": "mug"}')]
    labels = LabelsConfig(subject_field="item", subject_pattern=r"^(.+)-\d+$")
    rows = [row for row, _ in read_images(tar_of(*members), "s.tar", replace(CONFIG, labels=labels))]
    assert [(row["subject"], row["caption"]) for row in rows] == [("cup", "a red cup"), ("mug", "")]
    rows = [row for row, _ in read_images(tar_of(("Jose\u0301-1.jpg", JPEG)), "s.tar", replace(CONFIG, labels=labels))]
    assert rows[0]["subject"] == "Jos\u00e9"  # in the normal form that names of JSON get
    for pattern, what in (("(", "not a valid regular expression"), ("a.*", "no group")):
        with pytest.raises(ConfigError, match=what):
            LabelsConfig(subject_pattern=pattern)


def test_samples_without_a_valid_image_have_an_error() -> None:
    rows = rows_of(("a.txt", b"x"), ("b.jpg", JPEG[:900]), ("c.jpeg", b""), ("d.png", b"<html>"), ("e.jpg", JPEG))
    assert [bool(row["error"]) for row in rows] == [True, True, True, True, False]
    assert "no image among ['txt']" in rows[0]["error"]
    assert rows[1]["sha256"] == sha256(JPEG[:900])


def test_the_extension_does_not_decide_what_an_image_is() -> None:
    png = io.BytesIO()
    Image.fromarray(draw(0, 0)).save(png, "PNG")
    (row,) = rows_of(("k.JPG", png.getvalue()))
    assert row["error"] == ""


def test_a_name_that_is_not_utf8_is_escaped() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("caf\u00e9.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
    ((row, _),) = read_images(buffer, "s.tar", CONFIG)
    assert row["key"] == "caf\\udce9"


def test_a_truncated_shard_keeps_complete_samples_and_counts_lost_ones() -> None:
    whole = tar_of(
        *[(f"k{i}.{kind}", data) for i in range(4) for kind, data in (("jpg", JPEG), ("json", b"{}"))]
    ).getvalue()
    rows = [row for row, _ in read_images(io.BytesIO(whole[: len(JPEG) * 5 // 2]), "s.tar", CONFIG)]
    assert [(row["key"], row["cut"]) for row in rows] == [("k0", False), ("k1", False), ("k2", True)]
    (row,) = [row for row, _ in read_images(io.BytesIO(b""), "s.tar", CONFIG)]
    assert (row["key"], row["cut"], row["sha256"]) == ("", True, None)


def test_another_embedder_reads_images_again_and_keeps_the_rows(
    planned: Callable[..., StageWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = planned(write_raw(tmp_path / "raw", world(2, 3)))
    before = {info.key: info.etag for info in work.dataset.list("work/rows")}
    monkeypatch.setattr("lookalike.annotators.embedder.revision_of", lambda name: "grid-2")
    inputs = Inputs.of(work.config, list(work.inputs.shards))
    indexer = ShardIndexer(IndexWork(replace(work.config, embedder="other"), inputs, work.raw, work.dataset))
    assert indexer(RawShard(0, inputs.shards[0]))["error"] == [""]
    assert {info.key: info.etag for info in work.dataset.list("work/rows")} == before
    old, new = (read_table(work.dataset, i.workspace.vectors(i.ids[0])) for i in (work.inputs, inputs))
    assert old.equals(new)


def test_a_deleted_shard_is_reported_as_an_error(grid_embedder: None, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 3), per_shard=3)
    config = CurateConfig(raw=str(raw), dataset=str(tmp_path / "dataset"))
    store, dataset = open_store(config.raw), open_store(config.dataset)
    inputs = Inputs.of(config, list_raw(config.raw, dataset).shards)
    (raw / "shard-000000.tar").unlink()
    indexer = ShardIndexer(IndexWork(config, inputs, store, dataset))
    gone, there = (indexer(RawShard(i, inputs.shards[i])) for i in range(2))
    assert "no such object" in str(gone["error"][0])
    assert (there["error"].tolist(), there["images"].tolist()) == ([""], [3])


def test_equal_images_are_embedded_once(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    first = photo(0, 0)
    work = planned(write_raw(tmp_path / "raw", [first, first.under("copy"), photo(0, 1)]))
    vectors = read_table(work.dataset, work.inputs.workspace.vectors(work.inputs.ids[0]))
    assert len(vectors) == 3
    assert len(set(vectors["sha256"].to_pylist())) == 2
    assert vectors.schema.field("vector").type.list_size == GridEmbedder.dim
    assert np.isfinite(np.stack(vectors["vector"].to_pylist())).all()
