"""The curation of a finetune: what is meant for many subjects is off, and photos are held out of training."""

import hashlib
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.data.triplets import Triplet, read_triplets
from lookalike.errors import ConfigError
from lookalike.storage import read_object
from lookalike.storage.snapshot import MANIFEST
from pipelines.curate.config import CurateConfig
from pipelines.curate.filters import FiltersConfig, Photos
from pipelines.curate.filters.held_out import HeldOut, Role
from pipelines.curate.inputs import Inputs
from pipelines.curate.rows import unit_hash
from pipelines.curate.work import StageWork
from pipelines.finetune import FinetuneConfig
from pipelines.finetune.parts import curation_of
from tests.drawn import Photo, photo, write_raw
from tests.published import materialise

FINETUNE = FinetuneConfig(customer="acme", subject="mug", photos="/photos", store="/store")


@given(st.text(min_size=1, max_size=30))
def test_a_subject_of_a_finetune_is_never_validation(name: str) -> None:
    plan = curation_of(FINETUNE, "/raw", "/dataset", 2, "dropped").plan
    assert not unit_hash("split", 0, name) < plan.validation_fraction
    assert plan.min_validation_subjects == 0


@pytest.mark.parametrize("name", ["gray", "dog"])  # of those that the usual split holds out
def test_every_triplet_of_one_subject_trains(name: str, planned: Callable[..., StageWork], tmp_path: Path) -> None:
    photos = [photo(0, view).under(f"{name}-{view}", name) for view in range(4)]
    curation = curation_of(replace(FINETUNE, holdout=0), "/raw", "/dataset", 1, "dropped")
    work = planned(write_raw(tmp_path / "raw", photos), filters=curation.filters, plan=curation.plan)
    counts = read_object(materialise(work).version, MANIFEST)["counts"]["triplets"]
    assert counts["validation"] == 0
    assert counts["train"] == sum(work.read_summary(partition).triplets for partition in range(work.partitions)) >= 4


def test_references_fit_the_model_that_is_finetuned() -> None:
    assert [curation_of(FINETUNE, "/raw", "/d", most, "dropped").plan.max_references for most in (1, 2, 4)] == [1, 2, 2]


def test_dissimilar_photos_of_a_customer_are_one_subject() -> None:
    filters = curation_of(FINETUNE, "/raw", "/dataset", 2, "dropped").filters
    assert "off_subject" in filters.skip
    assert filters.no_pair.min_similarity == -1.0
    strict = replace(FINETUNE, filters=FiltersConfig(), holdout=0)
    assert curation_of(strict, "/raw", "/dataset", 2, "dropped").filters == FiltersConfig()


ROLES: tuple[Role, ...] = ("dropped", "targets")


def _datasets(
    photos: list[Photo], planned: Callable[..., StageWork], tmp_path: Path, holdout: int | None = None
) -> tuple[list[Triplet], list[Triplet], dict[str, Any]]:
    """Triplets of the data set to train on and of the one to evaluate on, and the counts of the first."""
    found: list[list[Triplet]] = []
    counts: dict[str, Any] = {}
    config = replace(FINETUNE, holdout=holdout)
    for number, role in enumerate(ROLES, start=1):
        curation = curation_of(config, "/raw", "/dataset", 2, role)
        raw = write_raw(tmp_path / "raw", photos)
        version = materialise(planned(raw, filters=curation.filters, plan=curation.plan), f"v{number:04d}").version
        if role == "dropped":
            counts = read_object(version, MANIFEST)["counts"]
            counts["stored"] = sorted(_stored(Path(tmp_path) / "dataset" / "shards"))
        found.append(read_triplets(version))
    return found[0], found[1], counts


def _stored(packs: Path) -> set[str]:
    """Hashes of all images in the packs, by their names and by their bytes."""
    found = set()
    for pack in packs.glob("*.tar"):
        with tarfile.open(pack) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found |= {member.name.removesuffix(".jpg"), hashlib.sha256(file.read()).hexdigest()}
    return found


def _photos(number: int) -> list[Photo]:
    return [photo(0, view).under(f"mug-{view}", "mug") for view in range(number)]


def _bytes_of(triplets: list[Triplet]) -> set[str]:
    """Hashes of all images that the triplets name."""
    return {each for t in triplets for each in (t.target_image, *t.reference_images)}


@pytest.mark.parametrize(("number", "held_out"), [(3, 1), (4, 1), (5, 2), (7, 2), (12, 2)])
def test_no_held_out_byte_reaches_training(
    number: int, held_out: int, planned: Callable[..., StageWork], tmp_path: Path
) -> None:
    training, suite, counts = _datasets(_photos(number), planned, tmp_path)
    targets = {triplet.target_image for triplet in suite}
    references = {image for triplet in suite for image in triplet.reference_images}
    assert len(targets) == held_out == counts["dropped"]["held_out"]
    assert counts["images_in"] == counts["images_kept"] + sum(counts["dropped"].values())
    assert not targets & _bytes_of(training)
    assert not targets & set(counts["stored"])
    assert references <= _bytes_of(training)
    assert {triplet.split for triplet in suite} == {"validation"}
    assert {triplet.split for triplet in training} == {"train"}


def test_held_out_photos_are_chosen_by_content(planned: Callable[..., StageWork], tmp_path: Path) -> None:
    photos = _photos(6)
    renamed = [each.under(f"other-{9 - number}") for number, each in enumerate(photos)]
    chosen = [{triplet.target_image for triplet in _datasets(each, planned, tmp_path)[1]} for each in (photos, renamed)]
    assert chosen[0] == chosen[1]


def test_equal_files_are_held_out_together() -> None:
    contents = [f"{number}" for number in (0, 1, 2, 0, 1, 2, 3, 4)]
    rows = pa.table({"sha256": contents})
    photos = Photos(rows, np.arange(8)[None])
    dropped = HeldOut(2).drop(photos)[0]
    assert len({content for content, drop in zip(contents, dropped, strict=True) if drop}) == 2
    assert not {c for c, drop in zip(contents, dropped, strict=True) if drop} & {
        c for c, drop in zip(contents, dropped, strict=True) if not drop
    }


@pytest.mark.parametrize(
    ("photos", "most", "held_out"), [(2, 2, 0), (3, 2, 1), (4, 2, 1), (5, 2, 2), (5, 9, 3), (9, 3, 3)]
)
def test_two_photos_always_remain_for_training(photos: int, most: int, held_out: int) -> None:
    rows = pa.table({"sha256": [str(number) for number in range(photos)]})
    assert HeldOut(most).drop(Photos(rows, np.arange(photos)[None])).sum() == held_out


def test_a_set_that_grows_holds_out_photos_of_before_or_new_ones() -> None:
    names = [str(number) for number in range(20)]

    def chosen(number: int) -> set[str]:
        photos = Photos(pa.table({"sha256": names[:number]}), np.arange(number)[None])
        return {name for name, drop in zip(names, HeldOut(2).drop(photos)[0], strict=False) if drop}

    for number in range(5, 20):
        assert chosen(number + 1) <= chosen(number) | {names[number]}


def test_finetune_that_sets_the_filter_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="use --holdout"):
        replace(FINETUNE, filters=FiltersConfig(held_out=HeldOut(1)))
    assert replace(FINETUNE, holdout=0).held_out_photos == 0
    assert FINETUNE.held_out_photos == 2


def test_snapshots_without_held_out_photos_keep_their_fingerprint() -> None:
    config = CurateConfig(raw="/raw", dataset="/dataset")
    assert "held_out" not in Inputs.of(config, []).config["filters"]
    assert (
        Inputs.of(config, []).fingerprint
        != Inputs.of(replace(config, filters=FiltersConfig(held_out=HeldOut())), []).fingerprint
    )
