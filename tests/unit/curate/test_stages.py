"""Plan, layout, materialise and finish on a small world, as plain functions."""

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from lookalike.annotators.embedder import NO_EMBEDDER, NoEmbedder
from lookalike.data.images import decode, decodes_as_it_is
from lookalike.data.triplet_files import load_images
from lookalike.data.triplets import read_table, read_triplets
from lookalike.errors import ConfigError, InputError
from lookalike.storage import open_store
from pipelines.curate.config import CurateConfig, PlanConfig, ShardsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.taken_down import TakenDown
from pipelines.curate.finish import add_summaries, summaries, total
from pipelines.curate.inputs import Inputs
from pipelines.curate.layout import divide, join
from pipelines.curate.materialise import fit, write_unit
from pipelines.curate.materialised import Done, MaterialiseWork
from pipelines.curate.raw import list_raw
from pipelines.curate.rows import sha256
from pipelines.curate.summary import Summary
from pipelines.curate.takedown import pin
from pipelines.curate.work import StageWork
from tests.drawn import Photo, draw, jpeg, photo, world, write_raw
from tests.published import materialise, tables

Planned = Callable[..., StageWork]
LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))


def rows_of(work: StageWork) -> list[dict[str, Any]]:
    tables = [work.read_plan(i, "images") for i in range(work.partitions)]
    return list(pa.concat_tables(tables).to_pylist())


def test_without_an_embedder_all_photos_of_a_subject_are_pairs(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lookalike.annotators.embedder.load_embedder", lambda name, device="cpu": NoEmbedder())
    filters = FiltersConfig(no_pair=NoPair(min_similarity=0), skip=["near_duplicate", "off_subject"])
    work = planned(write_raw(tmp_path / "raw", world(3, 3)), embedder=NO_EMBEDDER, filters=filters)
    rows = rows_of(work)
    assert [row["drop_reason"] for row in rows] == [None] * 9
    for i, row in enumerate(rows):
        of_subject = rows[i - i % 3 : i - i % 3 + 3]  # references are numbers within the subject
        assert {of_subject[number]["sha256"] for number in row["references"][0]} == {
            other["sha256"] for other in of_subject if other is not row
        }
    assert {similarity for row in rows for group in row["similarities"] for similarity in group} == {0.0}


def test_kept_equal_files_are_not_paired_and_have_separate_triplets(planned: Planned, tmp_path: Path) -> None:
    photos = world(2, 3)
    photos += [photos[0].under("again"), photos[1].under("elsewhere", "thing01")]
    filters = replace(LOOSE, skip=["exact_duplicate", "near_duplicate", "off_subject"])
    work = planned(write_raw(tmp_path / "raw", photos), filters=filters)
    assert [row["drop_reason"] for row in rows_of(work)] == [None] * 8
    triplets = read_triplets(materialise(work).version)
    assert len({triplet.triplet_id for triplet in triplets}) == len(triplets)
    assert not [triplet for triplet in triplets if triplet.target_image in triplet.reference_images]
    assert {"thing00", "thing01"} == {t.subject for t in triplets if t.target_image == sha256(photos[1].jpeg)}


def cut_of(work: StageWork) -> float:
    return join(work, tables(divide, work, work.partitions)).split_cut


def test_every_image_is_kept_or_has_a_reason(planned: Planned, tmp_path: Path) -> None:
    photos = world(4, 4)
    first = photos[0]
    photos += [
        first.under("copy"), first.under("copy-elsewhere", "thing01"),
        Photo("half", first.jpeg[:900], "thing00"), Photo("tiny", jpeg(draw(0, 9, 40)), "thing00"),
        Photo("plain", jpeg(np.full((160, 160, 3), 90, np.uint8)), "thing01"),
        Photo("unnamed", jpeg(draw(1, 9)), "", {"caption": "who?"}), photo(17, 0),
    ]  # fmt: skip
    raw = write_raw(tmp_path / "raw", photos, per_shard=9)
    last = sorted(raw.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[: -10240 - 2048])  # the end mark, and the sample before it
    work = planned(raw, filters=LOOSE)
    rows = rows_of(work)
    assert len(rows) == work.images == len(photos)
    reasons = {row["key"]: row["drop_reason"] for row in rows if row["drop_reason"]}
    assert reasons == {
        "copy": "exact_duplicate", "copy-elsewhere": "exact_duplicate", "half": "undecodable", "tiny": "too_small",
        "plain": "flat", "unnamed": "unlabelled", "thing17-0": "truncated_shard",
    }  # fmt: skip
    summary = work.read_summary(0)
    assert summary.images == summary.kept + summary.dropped.total()
    assert summary.dropped == Counter(reasons.values())
    assert (summary.subjects_in, summary.subjects) == (4, 4)


def test_partitions_do_not_change_the_plan(planned: Planned, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(6, 4))
    one = rows_of(planned(raw, filters=LOOSE))
    work = planned(raw, filters=LOOSE, plan=PlanConfig(rows_per_partition=3))
    assert work.partitions == 8
    assert sorted(rows_of(work), key=str) == sorted(one, key=str)


def test_partitions_cover_all_subjects_once(planned: Planned, tmp_path: Path) -> None:
    work = planned(write_raw(tmp_path / "raw", world(6, 4)), filters=LOOSE, plan=PlanConfig(rows_per_partition=5))
    spans = [work.span(i) for i in range(work.partitions)]
    assert (spans[0][0], spans[-1][1]) == (0, 1 << 62)
    assert [span[0] for span in spans[1:]] == [span[1] for span in spans[:-1]]
    for partition in range(work.partitions):
        names = set(work.read_plan(partition, "images")["subject"].to_pylist())
        assert {work.partition_of(name) for name in names} <= {partition}


def test_the_split_of_a_subject_does_not_depend_on_other_subjects(planned: Planned, tmp_path: Path) -> None:
    def validation(subjects: int) -> set[str]:
        raw = write_raw(tmp_path / f"raw{subjects}", world(subjects, 2))
        work = planned(raw, filters=LOOSE, plan=PlanConfig(validation_fraction=0.4, min_validation_subjects=0))
        cut = cut_of(work)
        assert cut == 0.4
        table = work.read_plan(0, "subjects").to_pylist()
        return {row["subject"] for row in table if row["split_hash"] < cut}

    few, many = validation(12), validation(24)
    assert few == {name for name in many if name < "thing12"}
    assert 0 < len(few) < 12


@pytest.mark.parametrize(("subjects", "expected"), [(1, 0), (2, 1), (3, 2), (6, 2)])
def test_minimum_of_validation_subjects(planned: Planned, tmp_path: Path, subjects: int, expected: int) -> None:
    raw = write_raw(tmp_path / "raw", world(subjects, 2))
    work = planned(raw, filters=LOOSE, plan=PlanConfig(validation_fraction=0.0))
    hashes = work.read_plan(0, "subjects")["split_hash"].to_numpy()
    assert (hashes < cut_of(work)).sum() == expected


def test_a_snapshot_reads_as_triplets_and_as_webdataset(planned: Planned, tmp_path: Path) -> None:
    photos = world(6, 4)
    content = {p.key: p.jpeg for p in photos}
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE)
    done = materialise(work)
    triplets = read_triplets(done.version)
    assert len({triplet.triplet_id for triplet in triplets}) == len(triplets) > 30
    sides = {side: {t.subject for t in triplets if t.split == side} for side in ("train", "validation")}
    assert not sides["train"] & sides["validation"]
    assert len(sides["validation"]) >= 2
    for triplet in triplets:
        assert triplet.target_image not in triplet.reference_images
        assert 1 <= len(triplet.reference_images) <= 2
        assert max(triplet.reference_similarities) <= 0.95
        assert triplet.prompt.startswith(f"a thing, {triplet.subject}-")
        target, references = load_images(done.version, triplet)
        np.testing.assert_array_equal(target, decode(content[triplet.prompt.removeprefix("a thing, ")]))
        assert len(references) == len(triplet.reference_images)
    packs = [f"{work.dataset.uri}/{info.key}" for info in work.dataset.list("shards/")]
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(packs, shardshuffle=False)}
    assert samples.keys() == {image for t in triplets for image in (t.target_image, *t.reference_images)}
    assert {sample["jpg"] for sample in samples.values()} == {p.jpeg for p in photos}


def test_units_are_bounded_and_writing_them_resumes(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [Photo(f"t{s}-{v}", jpeg(draw(s, v, 700), 99), f"t{s}") for s in range(4) for v in range(3)]
    raw = write_raw(tmp_path / "raw", photos)
    work = planned(raw, filters=LOOSE, shards=ShardsConfig(shard_mib=1, image_size=None))
    done = materialise(work)
    assert done.layout.units == 4
    rows = read_table(done.version)
    before = {info.key: work.dataset.read(info.key) for info in work.dataset.list() if info.key[0] in "sv"}
    packs = [key for key in before if key.startswith("shards/")]
    assert len(packs) == 4
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipelines.curate.materialise.write_tar", lambda *_: pytest.fail("a finished pack is written again")
        )
        materialise(work)
    for removed in (packs[1], "v0001/images/part-000002.parquet", "v0001/triplets/train-000003.parquet"):
        work.dataset.delete(removed)
    cut = work.dataset.read(packs[2])[:1000]
    work.dataset.write(packs[2], cut)
    work.dataset.delete(work.workspace.materialised(done.name, read_unit(done, packs[2])))
    for unit in range(4):
        write_unit(done, unit)
    after = {info.key: work.dataset.read(info.key) for info in work.dataset.list() if info.key[0] in "sv"}
    assert after == before
    assert read_table(done.version) == rows


def read_unit(work: MaterialiseWork, pack: str) -> int:
    """The unit that has written a pack."""
    return next(unit for unit in range(work.layout.units) if pack in Done.of(work, unit).packs)


def test_large_images_are_scaled_down_once_and_others_keep_their_bytes(planned: Planned, tmp_path: Path) -> None:
    photos = [Photo(f"t-{v}", jpeg(draw(3, v, 300 if v else 200)), "t") for v in range(3)]
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE, shards=ShardsConfig(image_size=256))
    done = materialise(work)
    sizes = set()
    for triplet in read_triplets(done.version):
        target, _ = load_images(done.version, triplet)
        sizes.add(target.shape[0])
        data = work.dataset.read_range(triplet.target_shard, triplet.target_offset, triplet.target_length)
        assert (data == photos[0].jpeg) == (target.shape[0] == 200)
    assert sizes == {200, 256}


def test_images_go_to_the_bucket_of_the_nearest_aspect(planned: Planned, tmp_path: Path) -> None:
    wide = [jpeg(draw(3, view, 300)[:200]) for view in range(2)]
    photos = [Photo(f"t-{i}", data, "t") for i, data in enumerate([*wide, jpeg(draw(3, 2, 240)), jpeg(draw(3, 3, 90))])]
    work = planned(
        write_raw(tmp_path / "raw", photos), filters=LOOSE, shards=ShardsConfig(buckets=[(128, 128), (96, 160)])
    )
    done = materialise(work)
    shapes = {t.target_image: load_images(done.version, t)[0].shape[:2] for t in read_triplets(done.version)}
    assert shapes == {sha256(p.jpeg): (96, 160) if p.jpeg in wide else (128, 128) for p in photos}


@pytest.mark.parametrize("flaw", ["a profile of no length", "no end mark"])
def test_a_jpeg_that_others_cannot_open_is_encoded_again(flaw: str) -> None:
    whole = jpeg(draw(3, 0, 200))
    flawed = whole[:-2] if flaw == "no end mark" else whole[:2] + b"\xff\xe1\0\0Exif\0\0" + whole[2:]
    assert fit(whole, ShardsConfig()) == whole
    kept = fit(flawed, ShardsConfig())
    assert np.asarray(Image.open(io.BytesIO(kept))).shape == (200, 200, 3)
    assert decodes_as_it_is(kept)
    assert np.abs(decode(kept).astype(int) - decode(whole)).mean() < 3


def test_a_deleted_part_or_list_is_written_again(planned: Planned, tmp_path: Path) -> None:
    work = planned(write_raw(tmp_path / "raw", world(3, 3)), filters=LOOSE)
    table = read_table(materialise(work).version)
    files = [info.key for info in work.dataset.list("v0001/") if info.key.endswith(".parquet")]
    assert len(files) == 7, "a list and a part of each table, and a list of packs"
    for key in files:
        work.dataset.delete(key)
        assert read_table(materialise(work).version) == table


def test_the_report_shows_no_taken_down_photo(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("subject:thing01\n")
    filters = replace(LOOSE, taken_down=TakenDown(pin(str(tmp_path / "list.txt"), open_store(str(tmp_path / "d")))))
    photos = [*world(4, 4), photo(0, 0).under("copy")]
    done = materialise(planned(write_raw(tmp_path / "raw", photos), filters=filters))
    rejects = json.loads(done.version.read("report.json"))["rejects"]
    assert rejects["exact_duplicate"][0]["thumb_b64"]
    assert [reject["thumb_b64"] for reject in rejects["taken_down"]] == [""] * 4
    assert "taken down, not shown" in done.version.read("report.html").decode()


def test_the_report_has_counts_and_dropped_photos(planned: Planned, tmp_path: Path) -> None:
    photos = [*world(4, 4), photo(0, 0).under("copy"), Photo("half<b>", photo(0, 1).jpeg[:900], "thing00")]
    done = materialise(planned(write_raw(tmp_path / "raw", photos), filters=LOOSE))
    report = json.loads(done.version.read("report.json"))
    assert [(row["reason"], row["dropped"], row["left"]) for row in report["funnel"] if row["dropped"]] == [
        ("undecodable", 1, 17), ("exact_duplicate", 1, 16),
    ]  # fmt: skip
    assert report["rejects"]["undecodable"][0]["thumb_b64"] == ""
    assert report["rejects"]["exact_duplicate"][0]["thumb_b64"]
    similarities = [np.mean(row["similarities"]) for row in report["triplets"]]
    assert similarities == sorted(similarities)
    assert report["triplets"][0]["references_b64"][0]
    assert sum(report["histograms"]["brightness"]["counts"]) == 17
    page = done.version.read("report.html").decode()
    assert "half&lt;b&gt;" in page
    assert "half<b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_fingerprint_depends_on_what_decides_about_the_snapshot(grid_embedder: None, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 2))
    config = CurateConfig(raw=str(raw), dataset=str(tmp_path / "dataset"))
    dataset = open_store(config.dataset)

    def fingerprint(config: CurateConfig) -> str:
        return Inputs.of(config, list_raw(config.raw, dataset).shards).fingerprint

    same = replace(config, dataset="elsewhere", actors=replace(config.actors, count=7))
    assert fingerprint(same) == fingerprint(config)
    assert fingerprint(replace(config, seed=1)) != fingerprint(config)
    before = fingerprint(config)
    write_raw(tmp_path / "raw", world(2, 3))
    assert fingerprint(config) != before


def test_invalid_raw_prefixes_are_rejected(tmp_path: Path) -> None:
    dataset = open_store(str(tmp_path / "dataset"))
    with pytest.raises(InputError, match="missing or empty"):
        list_raw(str(tmp_path / "nothing"), dataset)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no \.tar among the 1 objects"):
        list_raw(str(tmp_path / "photos"), dataset)
    for raw in (tmp_path, tmp_path / "dataset", tmp_path / "dataset" / "v0001"):
        with pytest.raises(ConfigError, match="share a prefix"):
            list_raw(str(raw), dataset)


def test_summaries_are_added_in_groups(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.curate.finish._SUMMARIES", 2)
    work = planned(write_raw(tmp_path / "raw", world(6, 4)), filters=LOOSE, plan=PlanConfig(rows_per_partition=3))
    assert (work.partitions, summaries(work)) == (8, 4)
    expected = Summary()
    for partition in range(work.partitions):
        expected.add(work.read_summary(partition))
    assert expected.images == 24
    assert total(tables(add_summaries, work, summaries(work))) == expected
