"""The plan of a table: subjects that are planned together get what each gets alone, and work grows with rows only."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import InputError
from pipelines.curate import groups
from pipelines.curate.captions import CaptionsConfig
from pipelines.curate.config import CurateConfig, PlanConfig
from pipelines.curate.filters import FiltersConfig, Photos
from pipelines.curate.filters.large_subject import LargeSubject
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.not_safe import NotSafe
from pipelines.curate.plan_rows import Planned, plan_rows
from pipelines.curate.rows import PLAN_SCHEMA, ROW_SCHEMA, SUBJECT_SCHEMA, content_hashes, unit_hash, unit_hashes
from pipelines.curate.summary import CAPTIONS_KEPT, Summary

DEFAULT = CurateConfig(raw="raw", dataset="dataset")
CONFIGS = {
    "default": DEFAULT,
    "few photos": replace(
        DEFAULT,
        filters=FiltersConfig(large_subject=LargeSubject(max_photos=6), not_safe=NotSafe(), skip=["exact_duplicate"]),
        plan=PlanConfig(max_references=3, max_triplets_per_target=5, max_triplets_per_subject=17),
        seed=3,
    ),
    "many sets": replace(
        DEFAULT,
        filters=FiltersConfig(
            no_pair=NoPair(min_similarity=0.1), skip=["exact_duplicate", "near_duplicate", "off_subject"]
        ),
        plan=PlanConfig(max_references=5, max_triplets_per_target=9, max_triplets_per_subject=1000),
        captions=CaptionsConfig(max_characters=20),
    ),
}
Part = dict[str, Any]


def columns(sizes: list[int], **values: Any) -> dict[str, Any]:
    """Columns of good images of subjects of these sizes, without ``values`` each with the same numbers."""
    n = sum(sizes)
    subject = np.repeat(np.arange(len(sizes)), sizes)
    defaults = {
        "subject_hash": subject * 1000, "key": [f"k{i:06d}" for i in range(n)], "shard": ["s.tar"] * n,
        "offset": np.arange(n) * 1024, "length": np.arange(n) + 1000, "sha256": [f"{i:064x}" for i in range(n)],
        "width": np.full(n, 640), "height": np.full(n, 480), "subject": [f"thing{i}" for i in subject],
        "class_name": [f"class{i % 3}" for i in subject], "caption": ["a thing on a table"] * n, "licence": [""] * n,
        "consent": [""] * n, "source": [""] * n, "phash": np.arange(n, dtype=np.uint64) * 0x9E3779B97F4A7C15,
        "sharpness": np.full(n, 500.0), "luma_mean": np.full(n, 120.0), "luma_std": np.full(n, 50.0),
        "subject_area": [None] * n, "cut": [False] * n, "linked": [False] * n, "error": [""] * n, "note": [""] * n,
        "unpacked": [""] * n,
    }  # fmt: skip
    return defaults | values


def part(sizes: list[int], vectors: np.ndarray, **values: Any) -> Part:
    """Arguments of :func:`plan_rows`."""
    table = columns(sizes, **values)
    rows = pa.table({field.name: pa.array(table[field.name]).cast(field.type) for field in ROW_SCHEMA})
    return {
        "rows": rows,
        "reasons": np.full(len(rows), "", object),
        "vectors": vectors,
        "repeated": np.zeros(len(rows), bool),
        "scores": {"not_safe": np.full(len(rows), np.nan)},
        "captions": pa.nulls(len(rows), pa.string()),
    }


def messy(seed: int, subjects: int = 60) -> Part:
    """Subjects of 1 to 14 photos with copies, strays, equal files, dropped images, notes and captions to cut."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 15, subjects).tolist()
    n, of = sum(sizes), np.repeat(np.arange(subjects), sizes)
    vectors = random.normal(size=(subjects, 16))[of] + random.normal(size=(n, 16)) * 0.6
    contents, hashes = np.arange(n), random.integers(0, 2**63, n).astype(np.uint64)
    for i in range(1, n):
        if of[i] == of[i - 1]:
            kind = random.random()
            if kind < 0.1:  # a copy
                vectors[i], hashes[i] = vectors[i - 1] * 1.01, hashes[i - 1] ^ np.uint64(1)
            elif kind < 0.15:  # an equal file
                vectors[i], hashes[i], contents[i] = vectors[i - 1], hashes[i - 1], contents[i - 1]
            elif kind < 0.2:  # a stray
                vectors[i] = random.normal(size=16)
    result = part(
        sizes, vectors.astype(np.float16), phash=hashes,
        sha256=[unit_hash(int(i)).hex()[4:14] * 6 + "0000" for i in contents],
        length=contents + 1000, width=random.choice([640, 641, 800], n),
        subject_hash=of // 2,  # two subjects have the same hash
        caption=random.choice(["", "a thing", "a <image> thing", "long " * 500], n),
        class_name=random.choice(["cup", "<s>cup", "x" * 120], n),
        note=random.choice(["", "image: odd; json: odd", "caption: was a list"], n),
        subject_area=np.where(random.random(n) < 0.5, random.random(n) * 0.1, 0.5),
    )  # fmt: skip
    result["reasons"] = random.choice(np.array(["", "", "", "", "", "undecodable", "flat"], object), n)
    result["repeated"] = random.random(n) < 0.05
    result["scores"] = {name: random.random(n).round(3) for name in result["scores"]}
    result["captions"] = pa.array([None if i % 3 else f"answer {i}" for i in range(n)], pa.string())
    return result


def taken(whole: Part, index: np.ndarray) -> Part:
    return {
        "rows": whole["rows"].take(pa.array(index)),
        "captions": whole["captions"].take(pa.array(index)),
        "scores": {name: values[index] for name, values in whole["scores"].items()},
        **{name: whole[name][index] for name in ("reasons", "vectors", "repeated")},
    }


def each_subject(whole: Part) -> list[Part]:
    subjects = np.array(whole["rows"]["subject"].to_pylist())
    starts = np.flatnonzero(subjects[1:] != subjects[:-1]) + 1
    return [taken(whole, index) for index in np.split(np.arange(len(subjects)), starts)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_bytes", [1, 20_000, groups._BATCH_BYTES])
def test_subjects_are_planned_as_each_is_alone(name: str, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = messy(7)
    alone = [plan_rows(**each, config=CONFIGS[name]) for each in each_subject(whole)]
    monkeypatch.setattr(groups, "_BATCH_BYTES", batch_bytes)
    together = plan_rows(**whole, config=CONFIGS[name])
    assert together.images.equals(pa.concat_tables(each.images for each in alone).combine_chunks())
    assert together.subjects.equals(pa.concat_tables(each.subjects for each in alone).combine_chunks())
    added = Summary()
    for each in alone:
        added.add(each.summary)
    assert together.summary == added
    assert len(together.summary.dropped) >= 5  # the example is not trivial
    assert together.images.schema == PLAN_SCHEMA
    assert together.subjects.schema == SUBJECT_SCHEMA


@pytest.mark.parametrize("name", CONFIGS)
def test_every_row_is_kept_or_dropped_and_counts_add_up(name: str) -> None:
    whole, config = messy(8), CONFIGS[name]
    planned = plan_rows(**whole, config=config)
    rows, summary = planned.images.to_pylist(), planned.summary
    assert len(rows) == summary.images == summary.kept + summary.dropped.total()
    assert summary.dropped == Counter(row["drop_reason"] for row in rows if row["drop_reason"])
    assert summary.triplets == sum(len(row["references"]) for row in rows)
    assert summary.triplets == sum(planned.subjects["triplets"].to_pylist())
    assert not [row for row in rows if row["drop_reason"] and row["references"]]
    kept = sorted({row["sha256"] for row in rows if not row["drop_reason"]})
    assert list(summary.captions) == kept[:CAPTIONS_KEPT]


@pytest.mark.parametrize("name", CONFIGS)
def test_references_are_rows_of_the_subject_with_their_similarity(name: str) -> None:
    whole = messy(9)
    planned = plan_rows(**whole, config=CONFIGS[name])
    rows, first = planned.images.to_pylist(), dict[str, int]()
    unit = whole["vectors"].astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    files: dict[str, dict[str, int]] = {}
    seen = 0
    for i, row in enumerate(rows):
        start = first.setdefault(row["subject"], i)
        for group, similarities in zip(row["references"], row["similarities"], strict=True):
            for number, similarity in zip(group, similarities, strict=True):
                other = rows[start + number]
                assert other["subject"] == row["subject"]
                assert other["drop_reason"] is None
                assert similarity == pytest.approx(float(unit[i] @ unit[start + number]), abs=6e-4)
                files.setdefault(row["subject"], {}).update({each["sha256"]: each["length"] for each in (row, other)})
                seen += 1
    assert seen > 100
    sizes = dict(zip(*(planned.subjects[name].to_pylist() for name in ("subject", "bytes")), strict=True))
    assert sizes == {subject: sum(lengths.values()) for subject, lengths in files.items()}


def test_an_earlier_reason_stays_and_an_answer_replaces_no_caption() -> None:
    whole = part([4], np.ones((4, 4)) + np.eye(4) * 2, caption=["own", "", "", "own"])
    whole["reasons"][0] = "flat"
    whole["repeated"][[0, 3]] = True
    whole["captions"] = pa.array(["answer", "answer", None, None], pa.string())
    planned = plan_rows(**whole, config=DEFAULT)
    assert planned.images["drop_reason"].to_pylist() == ["flat", None, None, "exact_duplicate"]
    assert planned.images["caption"].to_pylist() == ["own", "answer", "", "own"]


def test_subjects_of_equal_hash_remain_two() -> None:
    vectors = np.ones((4, 4), np.float32) + np.eye(4, dtype=np.float32) * 2
    planned = plan_rows(**part([2, 2], vectors, subject_hash=[5] * 4), config=DEFAULT)
    assert planned.subjects["subject"].to_pylist() == ["thing0", "thing1"]
    assert planned.images["references"].to_pylist() == [[[1]], [[0]], [[1]], [[0]]]
    assert planned.subjects["split_hash"].to_pylist() == [unit_hash("split", 0, f"thing{i}") for i in range(2)]


def test_a_table_without_rows_has_an_empty_plan() -> None:
    planned = plan_rows(**part([], np.zeros((0, 4), np.float16)), config=DEFAULT)
    assert (len(planned.images), len(planned.subjects)) == (0, 0)
    assert planned.summary == Summary()


def test_a_kept_image_without_an_embedding_is_an_error() -> None:
    vectors = np.ones((3, 16), np.float16)
    vectors[1] = 0
    with pytest.raises(InputError, match=r"1 images have no embedding \('k000001 of s\.tar'\)"):
        plan_rows(**part([3], vectors), config=DEFAULT)
    vectors[1, 15] = 1  # a vector may begin with zeros
    plan_rows(**part([3], vectors), config=DEFAULT)


def test_a_filter_that_judges_subjects_instead_of_photos_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.curate.filters.single_photo.SinglePhoto.drop", lambda self, p: np.ones(len(p), bool))
    with pytest.raises(AssertionError, match="filter single_photo returned"):
        plan_rows(**part([2], np.eye(2, 4, dtype=np.float32)), config=DEFAULT)


def test_choices_follow_hashes_of_identities() -> None:
    filters = FiltersConfig(large_subject=LargeSubject(max_photos=20), no_pair=NoPair(min_similarity=-1))
    config = replace(DEFAULT, filters=filters, plan=PlanConfig(max_triplets_per_subject=7), seed=11)
    rows = plan_of([60], config).images.to_pylist()
    dropped = [row for row in rows if row["drop_reason"] == "large_subject"]

    def in_order(rows: list[dict[str, Any]], *parts: object) -> list[dict[str, Any]]:
        hashes = content_hashes(parts, np.array([row["sha256"] for row in rows], object))
        return [rows[i] for i in np.argsort(hashes)]

    by_hash = in_order(rows, "large_subject")
    assert {row["sha256"] for row in dropped} == {row["sha256"] for row in by_hash[20:]}
    kept = in_order(by_hash[:20], "target", 11)
    assert [len(row["references"]) for row in kept] == [1] * 7 + [0] * 13
    summary = plan_of([60], config).summary
    examples = sorted(dropped, key=lambda row: unit_hash("example", row["shard"], row["key"], row["offset"]))
    assert [row["key"] for row in summary.examples["large_subject"]] == [row["key"] for row in examples[:12]]


class Calls:
    """Counts the calls of a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: str, function: Callable[..., Any]) -> None:
        self.count = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(target, counted)


def plan_of(sizes: list[int], config: CurateConfig = DEFAULT, **values: Any) -> Planned:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(len(sizes), 16)).repeat(sizes, axis=0) + random.normal(size=(sum(sizes), 16)) * 0.6
    return plan_rows(**part(sizes, vectors.astype(np.float16), **values), config=config)


def test_photos_that_are_compared_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_BATCH_BYTES", 100_000)
    shapes = []
    pairs = NoPair.pairs

    def watched(step: NoPair, photos: Photos) -> np.ndarray:
        shapes.append(photos.shape)
        return pairs(step, photos)

    monkeypatch.setattr(NoPair, "pairs", watched)
    plan_of([5] * 300 + [100] * 2)
    assert max(subjects for subjects, n in shapes if n == 5) > 20
    assert all(subjects == 1 or subjects * n * n * groups._PAIR_BYTES <= 100_000 for subjects, n in shapes)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_calls_of_filters_do_not_grow_with_subjects(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = FiltersConfig().near_duplicate.drop.__func__  # type: ignore[attr-defined]
    calls = Calls(monkeypatch, "pipelines.curate.filters.near_duplicate.NearDuplicate.drop", drop)
    counts = []
    for subjects in (20, 500):
        calls.count = 0
        plan_of([size] * subjects)
        counts.append(calls.count)
    assert counts == [1, 1]


def test_each_caption_is_cut_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.curate import captions

    calls = Calls(monkeypatch, "pipelines.curate.captions.fit_text", captions.fit_text)
    planned = plan_of([10] * 50, caption=["an <image> of a thing"] * 500)
    assert calls.count == 1
    assert set(planned.images["caption"].to_pylist()) == {"an of a thing"}
    assert planned.summary.noted == {"caption": 500}


def test_no_more_photos_of_one_subject_are_compared_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    function = Photos.similarity.func  # type: ignore[attr-defined]

    def similarity(photos: Photos) -> np.ndarray:
        result = photos.__dict__.setdefault("similarity", function(photos))
        compared.append(result.shape)
        return np.asarray(result)

    monkeypatch.setattr(Photos, "similarity", property(similarity))
    config = replace(DEFAULT, filters=FiltersConfig(large_subject=LargeSubject(max_photos=40)))
    planned = plan_of([3000, 5], config)
    assert planned.summary.dropped["large_subject"] == 2960
    assert planned.summary.bounded_subjects == 1
    assert max(shape[1] for shape in compared) == 40


def test_hashes_of_a_column_are_those_of_its_values() -> None:
    expected = [unit_hash("example", 3, name, number) for name, number in (("a", 1), ("ß", 2), ("", -1))]
    assert unit_hashes(["example", 3], ["a", "ß", ""], [1, 2, -1]).tolist() == expected
    assert unit_hashes(["example"], []).tolist() == []
