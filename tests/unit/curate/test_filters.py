import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import ConfigError
from pipelines.curate import filters
from pipelines.curate.filters import FiltersConfig, Photos
from pipelines.curate.filters.licence import Licence
from pipelines.curate.filters.near_duplicate import NearDuplicate
from pipelines.curate.filters.no_pair import NoPair
from pipelines.curate.filters.off_subject import OffSubject
from pipelines.curate.index import _row
from pipelines.curate.rows import IMAGE_SCHEMA

GOOD: dict[str, Any] = {
    "offset": 0, "length": 1, "width": 640, "height": 480, "subject": "cup", "sharpness": 500.0,
    "luma_mean": 120.0, "luma_std": 50.0,
}  # fmt: skip


def rows(*changes: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(
        [_row(f"k{i}", "s.tar", **GOOD | {"sha256": f"{i:02d}"} | change) for i, change in enumerate(changes)],
        IMAGE_SCHEMA,
    )


def with_similarity(similarity: np.ndarray, *changes: dict[str, Any]) -> Photos:
    """Return the photos of one subject, whose embeddings have exactly these similarities."""
    values, basis = np.linalg.eigh(similarity)
    vectors = basis * np.sqrt(np.maximum(values, 0))
    return Photos(
        rows(*(changes or [{}] * len(similarity))), np.arange(len(similarity))[None], vectors.astype(np.float32)
    )


@pytest.mark.parametrize(
    ("reason", "bad", "barely_good"),
    [
        ("truncated_shard", {"cut": True}, {"cut": False}),
        ("undecodable", {"error": "no image"}, {"error": ""}),
        ("unlabelled", {"subject": ""}, {"subject": "0"}),
        ("too_small", {"width": 63, "height": 80}, {"width": 64, "height": 80}),
        ("aspect", {"width": 1441}, {"width": 1440}),
        ("aspect", {"height": 1921}, {"height": 1920}),
        ("flat", {"luma_std": 5.9}, {"luma_std": 6.0}),
        ("blurry", {"sharpness": 11.9}, {"sharpness": 12.0}),
    ],
)
def test_an_image_filter_drops_beyond_its_threshold_only(
    reason: str, bad: dict[str, Any], barely_good: dict[str, Any]
) -> None:
    photos = Photos(rows(bad, barely_good))
    reasons = [[name for name, step in FiltersConfig().steps("image") if step.drop(photos)[i]] for i in range(2)]
    assert reasons == [[reason], []]


def test_licences_and_consents_are_allowed_by_name() -> None:
    photos = Photos(rows({"licence": "cc0-1.0", "consent": "training"}, {"licence": "CC-BY-NC-4.0"}, {"licence": ""}))
    assert not Licence().drop(photos).any()
    assert Licence(allowed=["CC0-1.0", "MIT"]).drop(photos).tolist() == [False, True, True]
    assert Licence(consents=["training"]).drop(photos).tolist() == [False, True, True]
    with pytest.raises(ConfigError, match="allows nothing"):
        Licence(allowed=[])


def test_of_equal_files_the_first_is_kept() -> None:
    contents = [{"sha256": content} for content in ("aa", "bb", "aa", "cc", "aa", "bb")]
    ((reason, step),) = FiltersConfig().steps("content")
    assert reason == "exact_duplicate"
    assert step.drop(Photos(rows(*contents))).tolist() == [False, False, True, False, True, True]


def test_a_near_duplicate_needs_near_hash_and_embedding_and_the_largest_is_kept() -> None:
    similarity = np.array([[1, 0.95, 0.95, 0.6], [0.95, 1, 0.95, 0.6], [0.95, 0.95, 1, 0.6], [0.6, 0.6, 0.6, 1]])
    hashes = [0b0, 0b1111, (1 << 63) - 1, 0b11]  # the third is far from all by its hash, the fourth by its embedding
    photos = with_similarity(similarity, *({"phash": h, "width": 640 + i} for i, h in enumerate(hashes)))
    assert NearDuplicate().drop(photos).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("bits", "similarity", "one"),
    [(0, 0.872, True), (8, 0.903, False), (12, 0.92, True), (12, 0.919, False), (22, 0.96, True), (33, 1.0, False)],
)
def test_required_similarity_grows_with_hash_distance(bits: int, similarity: float, one: bool) -> None:
    photos = with_similarity(np.array([[1, similarity], [similarity, 1]]), {"phash": 0}, {"phash": (1 << bits) - 1})
    assert NearDuplicate().drop(photos).any() == one


def test_a_photo_of_another_subject_is_dropped_and_a_varied_subject_is_kept() -> None:
    stranger = np.array([[1, 0.7, 0.75, 0.3], [0.7, 1, 0.72, 0.28], [0.75, 0.72, 1, 0.35], [0.3, 0.28, 0.35, 1]])
    assert OffSubject().drop(with_similarity(stranger)).tolist() == [[False, False, False, True]]
    varied = np.full((4, 4), 0.42) + 0.58 * np.eye(4)
    assert not OffSubject().drop(with_similarity(varied)).any()
    assert not OffSubject().drop(with_similarity(stranger[2:, 2:])).any()  # of two photos either could be the wrong one


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8])
def test_subjects_of_a_batch_are_judged_as_one_subject_is(n: int) -> None:
    """The rules of two filters, as directly as they can be written."""
    random, subjects = np.random.default_rng(n), 40
    vectors = random.normal(size=(subjects * n, 3)).astype(np.float32)
    hashes, widths = random.integers(0, 16, subjects * n), random.choice([640, 641, 642], subjects * n)
    changes = [{"phash": int(phash), "width": int(width)} for phash, width in zip(hashes, widths, strict=True)]
    index = random.permutation(subjects * n).reshape(subjects, n)
    photos = Photos(rows(*changes), index, vectors)
    near, off = NearDuplicate(min_similarity=0.8), OffSubject(max_similarity=0.6, min_gap=0.1)
    dropped = {"near": near.drop(photos).tolist(), "off": off.drop(photos).tolist()}
    for subject, similarity in enumerate(photos.similarity):
        mine = index[subject]
        kept: list[int] = []
        for i in sorted(range(n), key=lambda i: -widths[mine[i]]):
            distance = [np.bitwise_count(hashes[mine[i]] ^ hashes[mine[j]]) for j in kept]
            if not (similarity[i, kept] >= near.required(np.array(distance, np.uint8))).any():
                kept.append(i)
        assert dropped["near"][subject] == [i not in kept for i in range(n)]
        others = [np.median(np.delete(similarity[i], i)) if n > 1 else np.nan for i in range(n)]
        low = [value < 0.6 and value < np.median(others) - np.float32(0.1) for value in others]
        assert dropped["off"][subject] == [bool(each) and n >= off.min_photos for each in low]
    if n > 2:
        assert 0 < np.mean(dropped["near"]) < 1
        assert 0 < np.mean(dropped["off"]) < 1


def test_pairs_are_within_the_similarity_band() -> None:
    similarity = np.array([[1, 0.96, 0.6, 0.3], [0.96, 1, 0.5, 0.2], [0.6, 0.5, 1, 0.1], [0.3, 0.2, 0.1, 1]])
    photos = with_similarity(similarity)
    (pairs,) = NoPair().pairs(photos)
    assert {tuple(sorted(pair)) for pair in np.argwhere(pairs).tolist()} == {(0, 2), (1, 2)}
    assert (pairs == pairs.T).all()
    assert NoPair().drop(photos).tolist() == [[False, False, False, True]]


def test_equal_files_are_never_a_pair() -> None:
    contents = [{"sha256": content} for content in ("aa", "bb", "aa")]
    (pairs,) = NoPair(min_similarity=0).pairs(with_similarity(np.zeros((3, 3)), *contents))
    assert {tuple(sorted(pair)) for pair in np.argwhere(pairs).tolist()} == {(0, 1), (1, 2)}


@pytest.mark.parametrize("band", [(0.5, 0.99), (0.9, 0.5), (-2, 0.5)])
def test_a_band_above_the_copy_paste_cap_is_rejected(band: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"similarity band .* 0\.98"):
        NoPair(*band)


def test_similarities_are_rounded_before_thresholds() -> None:
    noisy = np.array([[1.0, 0.3999996], [0.3999996, 1.0]])
    assert NoPair().pairs(with_similarity(noisy)).any()


def test_filters_are_skipped_by_name() -> None:
    everything = [name for name, _ in FiltersConfig().steps()]
    optional = [name for name, step in FiltersConfig().steps() if "can_skip" in step.traits]
    assert optional == [
        *("too_small", "aspect", "flat", "blurry", "exact_duplicate", "subject_area", "near_duplicate", "off_subject"),
    ]
    assert [name for name, _ in FiltersConfig(skip=optional).steps()] == [
        name for name in everything if name not in optional
    ]
    with pytest.raises(ConfigError, match=r"names a filter that cannot be skipped \('undecodable'\)"):
        FiltersConfig(skip=["undecodable"])


def test_filters_are_ordered_by_scope() -> None:
    """Stages apply the filters by scope, so the funnel has to have the same order."""
    order = {"image": 0, "content": 1, "score": 2, "subject": 3}
    scopes = [order[step.scope] for _, step in FiltersConfig().steps()]
    assert scopes == sorted(scopes)


def test_each_filter_has_a_summary_of_its_own() -> None:
    summaries = [step.summary for _, step in FiltersConfig().steps()]
    assert len(set(summaries)) == len(summaries)
    assert all(summary[0].isupper() and not summary.endswith(".") for summary in summaries)


def test_the_walk_through_of_the_readme_is_a_filter() -> None:
    text = (Path(filters.__file__).parents[1] / "README.md").read_text()
    code, attribute = (textwrap.dedent(block) for block in re.findall(r"   ```python\n(.*?)   ```", text, re.DOTALL))
    names: dict[str, Any] = {}
    exec(code, names)
    step = names["Dark"]()
    assert step.drop(Photos(rows({"luma_mean": 7.9}, {"luma_mean": 8.0}))).tolist() == [True, False]
    assert (step.scope, step.summary, step.traits) == ("image", "Images that are too dark", ("can_skip",))
    assert attribute.startswith("dark: Dark = field(default_factory=Dark)")
