"""The drift between two reports."""

from typing import Any

from pipelines.curate.report import count_languages, drift


def report(kept: int, sharp: list[int], classes: dict[str, int]) -> dict[str, Any]:
    counts = {
        "images_in": 100, "images_kept": kept, "subjects_in": 9, "subjects": 8, "dropped": {"blurry": 100 - kept},
        "triplets": {"train": kept, "validation": 2},
    }  # fmt: skip
    return {"counts": counts, "histograms": {"sharpness": {"counts": sharp}}, "classes": classes, "languages": {}}


def test_drift_distance_is_zero_for_equal_reports_and_the_share_without_overlap_for_others() -> None:
    before = report(90, [5, 5, 0], {"cup": 3, "dog": 1})
    assert set(drift(before, before)["distances"].values()) == {0.0}
    change = drift(report(60, [0, 5, 5], {"cup": 2, "cat": 2}), before)
    assert change["counts"]["images_kept"] == [90, 60]
    assert change["counts"]["triplets"] == [92, 62]
    assert change["dropped"] == {"blurry": [0.1, 0.4]}
    assert change["distances"] == {"sharpness": 0.5, "classes": 0.5, "languages": 0.0}


def test_captions_are_counted_by_language() -> None:
    captions = ["a red mug on a wooden table in the kitchen", "ein roter Becher steht auf dem Tisch in der Küche", ""]
    assert count_languages(captions) == {"en": 1, "de": 1}
    assert set(count_languages(["x 1"])) <= {"und", "zxx"}
