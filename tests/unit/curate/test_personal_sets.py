"""The curation of a finetune switches off what is meant for many subjects."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.storage import read_object
from lookalike.storage.snapshot import MANIFEST
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.rows import unit_hash
from pipelines.curate.work import StageWork
from pipelines.finetune import FinetuneConfig
from pipelines.finetune.parts import curation_of
from tests.drawn import photo, write_raw
from tests.published import materialise

FINETUNE = FinetuneConfig(customer="acme", subject="mug", photos="/photos", store="/store")


@given(st.text(min_size=1, max_size=30))
def test_a_subject_of_a_finetune_is_never_validation(name: str) -> None:
    plan = curation_of(FINETUNE, "/raw", "/dataset", 2).plan
    assert not unit_hash("split", 0, name) < plan.validation_fraction
    assert plan.min_validation_subjects == 0


@pytest.mark.parametrize("name", ["gray", "dog"])  # of those that the usual split holds out
def test_every_triplet_of_one_subject_trains(name: str, planned: Callable[..., StageWork], tmp_path: Path) -> None:
    photos = [photo(0, view).under(f"{name}-{view}", name) for view in range(4)]
    curation = curation_of(FINETUNE, "/raw", "/dataset", 1)
    work = planned(write_raw(tmp_path / "raw", photos), filters=curation.filters, plan=curation.plan)
    counts = read_object(materialise(work).version, MANIFEST)["counts"]["triplets"]
    assert counts["validation"] == 0
    assert counts["train"] == sum(work.read_summary(partition).triplets for partition in range(work.partitions)) >= 4


def test_references_fit_the_model_that_is_finetuned() -> None:
    assert [curation_of(FINETUNE, "/raw", "/d", most).plan.max_references for most in (1, 2, 4)] == [1, 2, 2]


def test_dissimilar_photos_of_a_customer_are_one_subject() -> None:
    filters = curation_of(FINETUNE, "/raw", "/dataset", 2).filters
    assert "off_subject" in filters.skip
    assert filters.no_pair.min_similarity == -1.0
    strict = replace(FINETUNE, filters=FiltersConfig())
    assert curation_of(strict, "/raw", "/dataset", 2).filters == FiltersConfig()
