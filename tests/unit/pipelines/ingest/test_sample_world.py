"""The sample world is a function of its seed and has the defects that its truth lists."""

import io
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lookalike.data.images import ImageError, decode
from lookalike.errors import ConfigError
from lookalike.models.presets import ASSETS_DIR
from pipelines.curate.features import features
from pipelines.ingest.config import MORE_DEFECTS, IngestConfig, SampleWorldConfig
from pipelines.ingest.sample import shapes, vocabulary, world
from pipelines.ingest.sample.defects import KINDS, encode, plan_photos
from pipelines.ingest.sample.source import TRUTH, plan_sample
from tests.drawn import draw


def photos(**settings: object) -> list[world.Photo]:
    config = SampleWorldConfig(**settings)  # type: ignore[arg-type]
    return [photo for some in plan_photos(config, world.subjects(config)).values() for photo in some]


def test_subject_depends_on_seed_and_number_only() -> None:
    many = world.subjects(SampleWorldConfig(subjects=40, seed=3))
    later = world.subjects(SampleWorldConfig(subjects=10, seed=3, first_subject=30))
    assert many[30:] == later
    assert len({thing.name for thing in many}) == 40
    other = world.subjects(SampleWorldConfig(subjects=40, seed=4))
    assert not {thing.name for thing in many} & {thing.name for thing in other}


def test_every_fourth_subject_is_a_twin_of_another_shape() -> None:
    things = world.subjects(SampleWorldConfig(subjects=80))
    by_name = {thing.name: thing for thing in things}
    twins = [thing for thing in things if thing.twin_of]
    assert len(twins) == 20
    for twin in twins:
        first = by_name[str(twin.twin_of)]
        assert (twin.colours, twin.pattern) == (first.colours, first.pattern)
        assert twin.shape != first.shape


def test_shapes_can_be_chosen() -> None:
    things = world.subjects(SampleWorldConfig(subjects=5, shapes=["duck"]))
    assert {thing.shape for thing in things} == {"duck"}
    with pytest.raises(ConfigError, match="unicorn"):
        world.subjects(SampleWorldConfig(shapes=["unicorn"]))


def test_views_of_a_subject_are_evenly_spaced() -> None:
    thing = world.subject(0, 0)
    views = [world.photo(thing, i, 6).view for i in range(6)]
    azimuths = np.sort([view.azimuth_deg for view in views])
    assert np.diff(azimuths).max() < 110
    assert len({world.photo(thing, i, 6).place for i in range(6)}) == 6


def test_captions_consist_of_the_tokenizers_words() -> None:
    known = set((ASSETS_DIR / "mini.words.txt").read_text().split())
    looks = [None, *((pattern, (colour, "red")) for pattern in vocabulary.PATTERNS for colour in vocabulary.COLOURS)]
    everything = itertools.product(shapes.names(), vocabulary.PLACES, vocabulary.VIEWS, looks)
    captions = (vocabulary.caption(*parts) for parts in everything)
    allowed = {word for caption in captions for word in caption.replace(",", " ").split()}
    assert allowed <= known
    for photo in photos(subjects=60):
        assert set(photo.caption.replace(",", " ").split()) <= allowed, photo.caption


def test_bare_caption_has_neither_colours_nor_pattern() -> None:
    told, half, bare = (
        [photo.caption for photo in photos(subjects=60, defects=False, bare_captions=share)] for share in (0, 0.5, 1)
    )
    looks = {*vocabulary.COLOURS, "striped", "checked", "spots", "half", "patched"} - {"pink", "blue"}  # of places
    assert not [caption for caption in bare if looks & set(caption.split())]
    short = [one for one, long in zip(half, told, strict=True) if one != long]
    assert 0.4 < len(short) / len(told) < 0.6
    assert set(short) <= set(bare)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "name"),
    [(0, 20, "the front"), (350, 20, "the front"), (90, 20, "the right"), (180, 20, "behind"), (0, 55, "above")],
)
def test_view_names(azimuth: float, elevation: float, name: str) -> None:
    assert vocabulary.view_name(azimuth, elevation) == name


@pytest.mark.parametrize(("subjects", "asked", "each"), [(4, None, 3), (8, 11, 11), (200, None, 5)])
def test_each_defect_is_planted_as_often_as_configured(subjects: int, asked: int | None, each: int) -> None:
    planned = photos(subjects=subjects, defects_of_each=asked)
    counts = {kind: sum(photo.defect == kind for photo in planned) for kind in KINDS}
    assert set(counts.values()) == {each}
    assert len({photo.key for photo in planned}) == len(planned)
    for photo in planned:
        if photo.defect == "wrong_subject":
            assert photo.subject.shape != photo.filed_under.shape
        else:
            assert photo.subject == photo.filed_under


def test_more_defects_are_planted_after_all_others() -> None:
    usual, more = photos(subjects=8), photos(subjects=8, more_defects=list(MORE_DEFECTS))
    assert {photo.key: photo.defect for photo in usual}.items() <= {photo.key: photo.defect for photo in more}.items()
    added = Counter(photo.defect for photo in more) - Counter(photo.defect for photo in usual)
    assert added == dict.fromkeys(MORE_DEFECTS, 3)


def test_defects_can_be_turned_off() -> None:
    planned = photos(subjects=3, views=4, defects=False)
    assert len(planned) == 12
    assert all(photo.defect is None for photo in planned)


def test_each_defect_has_its_effect() -> None:
    ramp = np.linspace(0, 255, 256)
    picture = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], 90.0), -1).astype(np.uint8)
    clean = decode(encode(picture, None, 0))
    for variant in range(3):
        for defect in ("corrupt", "truncated"):
            with pytest.raises(ImageError):
                decode(encode(picture, defect, variant))
        assert max(decode(encode(picture, "tiny", variant)).shape) <= 32
        assert decode(encode(picture, "flat", variant)).std((0, 1)).max() < 1
        drawn = draw(0, variant, 256)
        before, after = (features(decode(encode(drawn, defect, variant)))["sharpness"] for defect in (None, "blurred"))
        assert after < 12 < before
        height, width = decode(encode(picture, "strip", variant)).shape[:2]
        assert max(height, width) >= 4 * min(height, width)
        again = Image.open(io.BytesIO(encode(picture, "near_duplicate", variant)))
        difference = np.asarray(again.resize((256, 256)), float) - clean
        assert 0 < np.abs(difference).mean() < 6
        for defect in ("exact_duplicate", "wrong_licence", "taken_down"):
            assert encode(picture, defect, variant) == encode(picture, None, variant)
        written = np.abs(decode(encode(picture, "overlaid_text", variant)).astype(int) - clean).max(2) > 60
        assert 0.01 < written.mean() < 0.3
        assert np.ptp(np.flatnonzero(written.any(axis=0))) > 0.6 * 256


def test_unknown_subject_is_named() -> None:
    config = IngestConfig(source="sample", raw="r", subjects=["no-such"], sample=SampleWorldConfig(defects=False))
    with pytest.raises(ConfigError, match=r"names none of the sample world .*no-such"):
        plan_sample(config)


def test_truth_lists_every_photo() -> None:
    plan = plan_sample(IngestConfig(source="sample", raw="r", sample=SampleWorldConfig(subjects=8)))
    truth = plan.extras[TRUTH]
    assert len(truth["photos"]) == sum(shard.images for shard in plan.shards)
    (cut,) = truth["truncated_shards"].values()
    assert [key for key, entry in truth["photos"].items() if entry["defect"] == "truncated_shard"] == cut
    assert len(cut) == 3
    for entry in truth["photos"].values():
        if entry["original"]:
            assert truth["photos"][entry["original"]]["defect"] is None


@pytest.mark.parametrize(
    "settings",
    [
        {"subjects": 0},
        {"views": 0},
        {"seed": 100},
        {"size_px": 8},
        {"bare_captions": 2},
        {"subjects": 3},
        {"first_subject": -1},
        {"more_defects": ["blurred"]},
        {"more_defects": ["taken_down"], "defects": False},
    ],
)
def test_invalid_worlds_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SampleWorldConfig(**settings)  # type: ignore[arg-type]


def test_word_groups_of_the_miniature_are_words_of_the_sample_world() -> None:
    groups = json.loads((ASSETS_DIR / "mini.word_groups.json").read_text())
    assert groups["colour"] == list(vocabulary.COLOURS)
    assert groups["class"] == sorted({word for name in shapes.names() for word in name.split()})
