"""Filters that ask a model: the images that it is shown, the answers that are kept, and captions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.annotators.captioner import Captioner
from lookalike.annotators.scorers import OpenNsfw
from lookalike.data.images import encode_png
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.not_safe import NotSafe
from pipelines.curate.filters.subject_area import SubjectArea
from pipelines.curate.work import StageWork
from tests.drawn import Photo, draw, jpeg, photo, world, write_raw

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
Planned = Callable[..., StageWork]


class Model:
    """A stand-in for a loaded model, which returns the mean of the red channel and records it."""

    def __init__(self) -> None:
        self.shown: list[float] = []

    def __call__(self, image: np.ndarray, *_: Any) -> float:
        self.shown.append(float(image[..., 0].mean() / 255))
        return self.shown[-1]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model that is loaded instead of open_nsfw."""
    model = Model()
    monkeypatch.setattr(OpenNsfw, "load", lambda self, device: model)
    return model


def reasons(work: StageWork) -> dict[str, str]:
    tables = [work.read_plan(i, "images") for i in range(work.partitions)]
    return {row["key"]: row["drop_reason"] for row in pa.concat_tables(tables).to_pylist()}


def test_a_model_sees_each_kept_image_once_and_a_new_threshold_asks_nothing(
    planned: Planned, model: Model, tmp_path: Path
) -> None:
    photos = [*world(3, 4), photo(0, 0).under("copy", "thing01"), Photo("tiny", jpeg(draw(0, 9, 40)), "thing00")]
    raw = write_raw(tmp_path / "raw", photos, per_shard=5)
    dropped = reasons(planned(raw, filters=replace(LOOSE, not_safe=NotSafe(max_score=0.5))))
    assert len(model.shown) == 12  # neither the copy nor the tiny one
    bad = [key for key, reason in dropped.items() if reason == "not_safe"]
    assert len(bad) == sum(share > 0.5 for share in model.shown)
    assert 0 < len(bad) < 12
    stricter = reasons(planned(raw, filters=replace(LOOSE, not_safe=NotSafe(max_score=0.4))))
    assert len(model.shown) == 12
    assert {key for key, reason in stricter.items() if reason == "not_safe"} > set(bad)
    wider = FiltersConfig(no_pair=LOOSE.no_pair, not_safe=NotSafe(), skip=["too_small"])
    planned(raw, filters=wider)
    assert len(model.shown) == 13  # what was too small before


def test_subject_area_comes_from_the_mask_and_images_without_one_are_kept(planned: Planned, tmp_path: Path) -> None:
    small, large = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    small[:4, :4], large[:32] = 255, 255
    photos = [Masked.of(photo(0, 0), small), Masked.of(photo(0, 1), large), photo(0, 2)]
    work = planned(write_raw(tmp_path / "raw", photos), filters=LOOSE)
    assert reasons(work) == {"thing00-0": "subject_area", "thing00-1": None, "thing00-2": None}
    lenient = planned(tmp_path / "raw", filters=replace(LOOSE, subject_area=SubjectArea(min_share=0.003)))
    assert set(reasons(lenient).values()) == {None}


class Masked(Photo):
    """Return a photo with a mask."""

    mask: np.ndarray

    @classmethod
    def of(cls, photo: Photo, mask: np.ndarray) -> "Masked":
        made = cls(photo.key, photo.jpeg, photo.subject)
        object.__setattr__(made, "mask", mask)
        return made

    def sample(self) -> tuple[str, dict[str, bytes]]:
        key, payload = super().sample()
        return key, {**payload, "mask.png": encode_png(self.mask)}


def test_photos_without_a_caption_get_one_and_others_keep_theirs(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Captioner, "revision", "made up")
    monkeypatch.setattr(Captioner, "load", lambda self, device: lambda image: "a drawn thing")
    uncaptioned = replace(photo(0, 1), metadata={"subject": "thing00"})
    raw = write_raw(tmp_path / "raw", [photo(0, 0), uncaptioned, photo(0, 2)])
    work = planned(raw, filters=LOOSE, captioner=Captioner("some/model"))
    rows = work.read_plan(0, "images").to_pylist()
    assert {row["key"]: row["caption"] for row in rows} == {
        "thing00-0": "a thing, thing00-0", "thing00-1": "a drawn thing", "thing00-2": "a thing, thing00-2",
    }  # fmt: skip
