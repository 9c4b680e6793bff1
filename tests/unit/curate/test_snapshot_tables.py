"""Diff, trace and searches of tables that have many parts, and of snapshots of format 1."""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike.data import triplets
from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.curate import snapshot_tables
from pipelines.curate.diff import ABSENT, KEPT, DiffConfig, diff
from pipelines.curate.rows import subject_hash, subject_hashes
from pipelines.curate.snapshot_tables import Snapshot
from pipelines.curate.trace import TraceConfig, trace
from tests.versions import Rows, hashed, publish


def drawn_world(seed: int, subjects: int = 40) -> tuple[Rows, Rows]:
    """Images and triplets; another seed changes some of the fates, images and splits."""
    rng, images, rows = np.random.default_rng(seed), [], []
    for number in range(subjects):
        if rng.random() < 0.15:
            continue
        subject = f"thing{number:02d}"
        split = "validation" if rng.random() < 0.3 else "train"
        kept = []
        for view in range(int(rng.integers(1, 9))):
            reason = [None, None, None, "blurry", "too_small"][int(rng.integers(5))]
            content = hashed(f"{subject}-{view}")
            place = {"subject": subject, "subject_hash": subject_hash(subject), "key": f"{subject}-{view}"}
            place |= {"shard": f"shard-{view % 3}.tar", "offset": int(rng.integers(2)) + view * 10, "length": 9}
            images.append(place | {"sha256": content, "drop_reason": reason, "licence": "CC0-1.0", "source": "drawn"})
            kept += [content] if reason is None else []
        for target in kept[1:]:
            row = {"triplet_id": f"{target[:20]}-0", "split": split, "subject": subject, "prompt": "p"}
            row |= {"target_image": target, "reference_images": [kept[0]], "target_shard": f"shards/{split}-000000.tar"}
            rows.append(row)
    images.sort(key=lambda row: (row["subject_hash"], row["subject"], row["shard"], row["offset"], row["key"]))
    rows.sort(key=lambda row: (subject_hash(row["subject"]), row["triplet_id"]))
    return images, rows


def expected_difference(old: tuple[Rows, Rows], new: tuple[Rows, Rows]) -> dict[str, Any]:
    """The difference by loops over all rows."""
    sides = [
        {(row["subject"], row["shard"], row["offset"], row["key"]): row["drop_reason"] or KEPT for row in images}
        for images, _ in (old, new)
    ]
    fates: dict[tuple[str, str], list[str]] = defaultdict(list)
    places = sorted({**sides[0], **sides[1]}, key=lambda place: (subject_hash(place[0]), *place))
    for place in places:
        fates[sides[0].get(place, ABSENT), sides[1].get(place, ABSENT)].append(place[3])
    changed = [(a, b, len(keys), keys[:3]) for (a, b), keys in fates.items() if a != b]
    ids = [{(row["split"], row["triplet_id"]) for row in rows} for _, rows in (old, new)]
    splits = [{row["subject"]: row["split"] for row in rows} for _, rows in (old, new)]
    return {
        "images": sorted(changed, key=lambda fate: (-fate[2], fate[0], fate[1])),
        "unchanged": sum(len(keys) for (a, b), keys in fates.items() if a == b),
        "triplets": {
            split: {
                "added": sum(s == split for s, _ in ids[1] - ids[0]),
                "removed": sum(s == split for s, _ in ids[0] - ids[1]),
                "kept": sum(s == split for s, _ in ids[0] & ids[1]),
            }
            for split in triplets.SPLITS
        },
        "moved": sum(splits[0][subject] != splits[1][subject] for subject in splits[0].keys() & splits[1].keys()),
    }


@pytest.mark.parametrize("formats", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rows_of_a_unit", [20, 200_000])
def test_a_diff_by_ranges_is_that_of_all_rows(
    formats: tuple[bool, bool], rows_of_a_unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_tables, "_ROWS_OF_A_UNIT", rows_of_a_unit)
    monkeypatch.setattr("pipelines.curate.diff.FEW", 1000)
    dataset = open_store(str(tmp_path))
    worlds = [drawn_world(seed) for seed in (1, 2)]
    for number, (images, rows) in enumerate(worlds, start=1):
        publish(dataset, number, images, rows, format_1=formats[number - 1])
    found = diff(DiffConfig(before=1, after=2, dataset=str(tmp_path)))
    expected = expected_difference(*worlds)
    assert [(fate.before, fate.after, fate.images, fate.examples) for fate in found.images] == expected["images"]
    assert (found.unchanged, found.triplets, found.moved) == tuple(
        expected[name] for name in ("unchanged", "triplets", "moved")
    )
    assert found.moved
    assert len(found.images) > 8


def test_a_diff_with_a_snapshot_without_validation_triplets(tmp_path: Path) -> None:
    dataset, (images, rows) = open_store(str(tmp_path)), drawn_world(1)
    train = [row for row in rows if row["split"] == "train"]
    publish(dataset, 1, images, train, format_1=False)
    publish(dataset, 2, images, rows, format_1=False)
    found = diff(DiffConfig(before=1, after=2, dataset=str(tmp_path)))
    assert found.triplets["validation"] == {"added": len(rows) - len(train), "removed": 0, "kept": 0}
    assert found.triplets["train"] == {"added": 0, "removed": 0, "kept": len(train)}


@pytest.mark.parametrize("format_1", [True, False])
@pytest.mark.parametrize("rows_of_a_unit", [20, 200_000])
def test_a_trace_finds_every_triplet_and_image(
    format_1: bool, rows_of_a_unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_tables, "_ROWS_OF_A_UNIT", rows_of_a_unit)
    monkeypatch.setattr("pipelines.curate.trace.FEW", 1000)
    images, rows = drawn_world(1, 12)
    publish(open_store(str(tmp_path)), 1, images, rows, format_1=format_1)
    for row in rows:
        (entry,) = trace(TraceConfig(id=row["triplet_id"], dataset=str(tmp_path)))
        assert {name: entry[name] for name in ("split", "subject", "prompt", "shard")} == {
            **{name: row[name] for name in ("split", "subject", "prompt")},
            "shard": row["target_shard"],
        }
        assert [image["sha256"] for image in entry["images"]] == [row["target_image"], *row["reference_images"]]
    for image in images:
        (entry,) = trace(TraceConfig(id=image["sha256"][:12], dataset=str(tmp_path)))
        assert entry["image"]["raw"] == f"file:///raw/{image['shard']}"
        uses = [row["triplet_id"] for row in rows if image["sha256"] in (row["target_image"], *row["reference_images"])]
        assert [example["triplet_id"] for example in entry["examples"]] == sorted(
            uses, key=lambda triplet_id: [row["triplet_id"] for row in rows].index(triplet_id)
        )


def test_a_trace_reads_the_parts_of_the_subject_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, rows = drawn_world(1)
    version = publish(open_store(str(tmp_path)), 1, images, rows, format_1=False, per_part=5)
    read: list[str] = []
    whole = type(version).read
    monkeypatch.setattr(type(version), "read", lambda self, key: read.append(key) or whole(self, key))
    first = next(row for row in rows if row["split"] == "train")
    trace(TraceConfig(id=first["triplet_id"], dataset=str(tmp_path)))
    assert 1 <= sum(key.startswith("images/") for key in read) <= 3
    read.clear()
    trace(TraceConfig(id=first["target_image"], dataset=str(tmp_path)))
    assert 1 <= sum(key.startswith("train/") for key in read) <= 3


def test_a_search_for_a_triplet_ends_where_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_tables, "_ROWS_OF_A_UNIT", 5)
    monkeypatch.setattr("pipelines.curate.trace.FEW", 1000)
    images, rows = drawn_world(1)
    version = publish(open_store(str(tmp_path)), 1, images, rows, format_1=False, per_part=5)
    train = [row for row in rows if row["split"] == "train"]
    last = f"train/{(len(train) - 1) // 5}.parquet"
    version.write(last, b"")
    trace(TraceConfig(id=train[0]["triplet_id"], dataset=str(tmp_path)))
    with pytest.raises(InputError, match=last):  # not "no triplet with this id"
        trace(TraceConfig(id=f"{'0' * 20}-0", dataset=str(tmp_path)))


def test_an_image_that_came_in_a_thousand_times_is_shown_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, rows = drawn_world(1, 5)
    placeholder = hashed("a placeholder")
    copies = [images[0] | {"sha256": placeholder, "drop_reason": "duplicate", "offset": 100 + i} for i in range(1000)]
    publish(open_store(str(tmp_path)), 1, [*copies, *images], rows, format_1=False)
    entries = trace(TraceConfig(id=placeholder, dataset=str(tmp_path)))
    assert [entry["image"]["offset"] for entry in entries] == list(range(100, 200))
    assert "900 more dropped images" in caplog.text


@pytest.mark.parametrize("format_1", [True, False])
def test_a_changed_table_is_an_error_that_names_it(format_1: bool, tmp_path: Path) -> None:
    """Also one that is still a table: a row may be missing from it."""
    images, rows = drawn_world(1)
    version = publish(open_store(str(tmp_path)), 1, images, rows, format_1=format_1)
    name = "images.parquet" if format_1 else "images/1.parquet"
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(version.read(name))).slice(1), buffer)
    version.write(name, buffer.getvalue())
    for ask in (
        lambda: trace(TraceConfig(id=images[0]["sha256"], dataset=str(tmp_path))),
        lambda: diff(DiffConfig(before=1, after=1, dataset=str(tmp_path))),
    ):
        with pytest.raises(InputError, match=name):
            ask()


def test_units_cover_all_pieces_and_a_span_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_tables, "_ROWS_OF_A_UNIT", 40)
    images, rows = drawn_world(1)
    for number, format_1 in ((1, True), (2, False)):
        publish(open_store(str(tmp_path)), number, images, rows, format_1=format_1)
        table = Snapshot.of(open_store(str(tmp_path)), number).table("images")
        units = table.units()
        assert [piece for first, stop in units for piece in range(first, stop)] == list(range(len(table.rows)))
        assert 1 < len(units) < len(table.rows)
        place = subject_hash(images[30]["subject"])
        span = table.read_span((place, place + 1), ["key"])
        assert span is not None
        assert span["key"].to_pylist() == [row["key"] for row in images if row["subject_hash"] == place]


def test_a_manifest_that_was_edited_is_an_error(tmp_path: Path) -> None:
    images, rows = drawn_world(1)
    dataset = open_store(str(tmp_path))
    publish(dataset, 1, images, rows)
    snapshot = Snapshot.of(dataset, 1)
    publish(dataset, 1, images[1:], rows)
    with pytest.raises(InputError, match=r"the manifest of the snapshot has changed.*manifest\.json"):
        snapshot.table("images")


def test_hashes_of_a_column_are_those_of_its_texts() -> None:
    column = pa.chunked_array([["a", "b"], ["a", None]], pa.string())
    assert subject_hashes(column).tolist() == [subject_hash(name) for name in ("a", "b", "a", "None")]
    assert subject_hashes(pa.chunked_array([], pa.string())).tolist() == []
