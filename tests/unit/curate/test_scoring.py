"""Filters that ask a model: the images that it is shown, the answers that are kept, and captions."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.annotators.captioner import Captioner
from lookalike.annotators.scorers import OpenNsfw
from lookalike.data.images import decode, encode_png
from pipelines.actors import ActorConfig
from pipelines.curate.config import CurateConfig, ScoringConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.aesthetic import Aesthetic
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.not_safe import NotSafe
from pipelines.curate.filters.subject_area import SubjectArea
from pipelines.curate.models import with_pinned_models
from pipelines.curate.work import StageWork
from tests.drawn import Photo, draw, jpeg, photo, world, write_raw

LOOSE = FiltersConfig(no_pair=NoPair(min_similarity=-1.0))
Planned = Callable[..., StageWork]


class Model:
    """A stand-in for a loaded model, which returns the mean of the red channel and records it."""

    def __init__(self) -> None:
        self.shown: list[float] = []
        self.batches: list[int] = []

    def __call__(self, images: Sequence[np.ndarray], *_: Any) -> list[float]:
        scores = [float(image[..., 0].mean() / 255) for image in images]
        self.batches.append(len(images))
        self.shown += scores
        return scores


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
    monkeypatch.setattr(Captioner, "load", lambda self, device: lambda images: ["a drawn thing"] * len(images))
    uncaptioned = replace(photo(0, 1), metadata={"subject": "thing00"})
    raw = write_raw(tmp_path / "raw", [photo(0, 0), uncaptioned, photo(0, 2)])
    work = planned(raw, filters=LOOSE, captioner=Captioner("some/model"))
    rows = work.read_plan(0, "images").to_pylist()
    assert {row["key"]: row["caption"] for row in rows} == {
        "thing00-0": "a thing, thing00-0", "thing00-1": "a drawn thing", "thing00-2": "a thing, thing00-2",
    }  # fmt: skip


def test_batches_hold_images_of_one_raw_shard_and_their_size_is_a_setting(
    planned: Planned, model: Model, tmp_path: Path
) -> None:
    raw = write_raw(tmp_path / "raw", world(3, 4), per_shard=7)
    filters = replace(LOOSE, not_safe=NotSafe())
    planned(raw, filters=filters, scoring=ScoringConfig(batch_images=3))
    assert model.batches == [3, 3, 1, 3, 2]
    planned(raw, filters=filters, scoring=ScoringConfig(batch_images=3), seed=1)
    assert len(model.batches) == 5  # the answers are kept
    planned(raw, filters=filters, scoring=ScoringConfig(batch_images=100))
    assert model.batches[5:] == [7, 5]  # another size asks again


def test_on_a_gpu_every_batch_has_the_same_number_of_images(
    planned: Planned, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_raw(tmp_path / "raw", world(3, 4), per_shard=7)
    filters = replace(LOOSE, not_safe=NotSafe(max_score=0.5))
    expected = reasons(planned(raw, filters=filters, scoring=ScoringConfig(batch_images=2)))
    model.batches.clear()
    monkeypatch.setattr(ActorConfig, "prepare", lambda self: "cuda")
    work = planned(raw, filters=filters, scoring=ScoringConfig(batch_images=5))
    assert model.batches == [5, 5, 5]
    assert reasons(work) == expected


def test_a_killed_shard_continues_after_its_last_part_in_the_same_batches(
    planned: Planned, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.curate.score._PART_IMAGES", 4)
    raw = write_raw(tmp_path / "raw", world(3, 4), per_shard=12)
    settings: dict[str, Any] = {"filters": replace(LOOSE, not_safe=NotSafe()), "scoring": ScoringConfig(batch_images=2)}
    dataset = tmp_path / "dataset"

    def answers() -> list[str]:
        return sorted(path.name for path in (dataset / "work" / "answers").rglob("*.parquet"))

    work = planned(raw, **settings)
    whole, shown = [path.read_bytes() for path in (dataset / "work" / "answers").rglob("*.parquet")], list(model.shown)
    shutil.rmtree(dataset)

    class Killed(BaseException):
        pass

    def dies(images: Sequence[np.ndarray], *_: Any) -> list[float]:
        if len(second.shown) == 10:
            raise Killed
        return second(images)

    second = Model()
    monkeypatch.setattr(OpenNsfw, "load", lambda self, device: dies)
    with pytest.raises(Killed):
        planned(raw, **settings)
    assert answers() == ["000000.parquet", "000001.parquet"]  # 8 answers, of 10
    third = Model()
    monkeypatch.setattr(OpenNsfw, "load", lambda self, device: third)
    again = planned(raw, **settings)
    assert third.shown == shown[8:]
    assert len(answers()) == 1  # the parts are joined and removed
    assert [path.read_bytes() for path in (dataset / "work" / "answers").rglob("*.parquet")] == whole
    assert reasons(again) == reasons(work)


def test_parts_of_a_run_that_was_killed_while_it_joined_them_are_removed(
    planned: Planned, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_raw(tmp_path / "raw", world(2, 3), per_shard=6)
    filters = replace(LOOSE, not_safe=NotSafe())
    planned(raw, filters=filters)
    (table,) = (tmp_path / "dataset" / "work" / "answers").rglob("*.parquet")
    part = table.with_suffix("") / "000000.parquet"
    part.parent.mkdir()
    shutil.copy(table, part)
    before = table.read_bytes()
    planned(raw, filters=filters, seed=1)
    assert len(model.shown) == 6
    assert table.read_bytes() == before
    assert not part.exists()


def test_images_are_decoded_ahead_of_the_model_within_a_bound(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr("pipelines.curate.score.decode", lambda data, side: decoded.append(data) or decode(data, side))
    ahead: list[int] = []

    def loaded(images: Sequence[np.ndarray], *_: Any) -> list[float]:
        time.sleep(0.2)  # the readers have time to run too far
        ahead.append(len(decoded))
        return [0.0] * len(images)

    monkeypatch.setattr(OpenNsfw, "load", lambda self, device: loaded)
    raw = write_raw(tmp_path / "raw", world(4, 4), per_shard=16)
    planned(raw, filters=replace(LOOSE, not_safe=NotSafe()), scoring=ScoringConfig(batch_images=2))
    assert ahead == [6, 8, 10, 12, 14, 16, 16, 16]


def test_names_on_the_hub_are_resolved_once_by_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def revision(name: str, kind: str = "model") -> str:
        asked.append(name)
        return f"{name.partition('@')[0]}@{'c' * 40}"

    monkeypatch.setattr("lookalike.annotators.hub.model_revision", revision)
    folder = tmp_path / "classifier"
    folder.mkdir()
    filters = FiltersConfig(aesthetic=Aesthetic(str(folder)), subject_area=SubjectArea(model="org/clipseg"))
    config = CurateConfig("raw", "dataset", embedder="org/dino@main", captioner=Captioner("org/blip"), filters=filters)
    pinned = with_pinned_models(config)
    assert pinned.embedder == f"org/dino@{'c' * 40}"
    assert pinned.captioner is not None
    assert pinned.captioner.model == f"org/blip@{'c' * 40}"
    assert pinned.filters.subject_area.model == f"org/clipseg@{'c' * 40}"
    assert pinned.filters.aesthetic == filters.aesthetic  # a folder
    assert sorted(asked) == ["org/blip", "org/clipseg", "org/dino@main"]
    default = CurateConfig("raw", "dataset")
    assert with_pinned_models(default) == default


def test_tasks_take_the_revision_of_a_model_from_the_plan_of_work(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Captioner, "revision", property(lambda self: asked.append(self.model) or "made up"))
    monkeypatch.setattr(Captioner, "load", lambda self, device: lambda images: ["a thing"] * len(images))
    photos = [replace(photo(0, i), metadata={"subject": "thing00"}) for i in range(4)]
    planned(write_raw(tmp_path / "raw", photos, per_shard=1), filters=LOOSE, captioner=Captioner("some/model"))
    assert asked == ["some/model"]
