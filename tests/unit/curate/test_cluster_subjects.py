"""Subjects are found by the embeddings of their photos."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.curate.cluster_subjects import group
from pipelines.curate.config import FoundConfig, LabelsConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.work import StageWork
from tests.drawn import photo, world, write_raw

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
Planned = Callable[..., StageWork]


def directions(subjects: int, views: int, noise: float) -> np.ndarray:
    random = np.random.default_rng(0)
    centres = np.repeat(random.normal(size=(subjects, 64)), views, axis=0)
    vectors = centres + noise * random.normal(size=centres.shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_grouping_finds_subjects_and_is_deterministic() -> None:
    vectors = directions(200, 5, 0.4)
    labels = group(vectors, FoundConfig())
    assert (labels == np.repeat(np.arange(200) * 5, 5)).mean() > 0.98
    assert (labels == group(vectors, FoundConfig())).all()


def test_a_chain_of_similar_images_is_divided() -> None:
    angles = np.radians(np.arange(0, 180, 20))  # neighbours have 0.94, ends -0.94
    vectors = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1).astype(np.float32)
    labels = group(vectors, FoundConfig(min_similarity=0.66, neighbours=4))
    assert len(set(labels)) >= 3


def test_one_image_is_one_group() -> None:
    assert group(directions(1, 1, 0), FoundConfig()).tolist() == [0]


def test_unlabelled_photos_of_many_shards_get_subjects_and_labelled_ones_keep_theirs(
    planned: Planned, tmp_path: Path
) -> None:
    unlabelled = {"caption": "a thing"}
    photos = [replace(p, metadata=unlabelled) for p in world(6, 4)] + [photo(6, view) for view in range(3)]
    raw = write_raw(tmp_path / "raw", photos, per_shard=4)
    for cells in (1, 3):  # photos of a subject in two cells are two subjects
        settings = FoundConfig(min_similarity=0.7, images_per_cell=-(-len(photos) // cells))
        work = planned(raw, filters=LOOSE, labels=LabelsConfig(found=settings))
        tables = [work.read_plan(i, "images") for i in range(work.partitions)]
        subject = {row["key"]: row["subject"] for row in pa.concat_tables(tables).to_pylist()}
        assert {subject[p.key] for p in photos[24:]} == {"thing06"}
        names_of = [{subject[f"thing{thing:02d}-{view}"] for view in range(4)} for thing in range(6)]
        assert all(name.startswith("found-") for names in names_of for name in names)
        owners = [sum(name in names for names in names_of) for name in set().union(*names_of)]
        assert owners.count(1) >= 0.8 * len(owners)  # few names belong to two subjects
        if cells == 1:
            assert sum(len(names) < 4 for names in names_of) >= 4  # most have views that are found together


def test_labelled_photos_keep_their_subjects_if_few_or_none_are_unlabelled(planned: Planned, tmp_path: Path) -> None:
    settings = LabelsConfig(found=FoundConfig(images_per_cell=2))
    for unlabelled in (0, 1):
        photos = world(3, 3)
        photos[:unlabelled] = [replace(p, metadata={"caption": "a thing"}) for p in photos[:unlabelled]]
        work = planned(write_raw(tmp_path / f"raw{unlabelled}", photos), filters=LOOSE, labels=settings)
        tables = [work.read_plan(i, "images") for i in range(work.partitions)]
        rows = pa.concat_tables(tables).to_pylist()
        assert sum(row["subject"].startswith("thing") for row in rows) == len(photos) - unlabelled
        assert sum(row["subject"].startswith("found-") for row in rows) == unlabelled


def test_a_shard_without_a_decodable_photo_gets_no_subjects(planned: Planned, tmp_path: Path) -> None:
    broken = [replace(photo(0, view), jpeg=b"not a photo") for view in range(2)]
    raw = write_raw(tmp_path / "raw", [*world(2, 2), *broken], per_shard=4)
    work = planned(raw, filters=LOOSE, labels=LabelsConfig(found=FoundConfig()))
    assert work.read_summary(0).dropped == {"undecodable": 2}
