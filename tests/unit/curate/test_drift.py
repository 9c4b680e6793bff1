"""What a report says of the snapshot before."""

from typing import Any

from pipelines.curate.drift import drift
from pipelines.curate.languages import UNSURE, count_languages


def report(kept: int, sharp: list[int], classes: dict[str, int]) -> dict[str, Any]:
    counts = {
        "images_in": 100, "images_kept": kept, "subjects_in": 9, "subjects": 8, "dropped": {"blurry": 100 - kept},
        "triplets": {"train": kept, "validation": 2},
    }  # fmt: skip
    return {"counts": counts, "histograms": {"sharpness": {"counts": sharp}}, "classes": classes, "languages": {}}


def test_equal_reports_have_no_distance_and_different_ones_have_as_much_as_they_do_not_share() -> None:
    before = report(90, [5, 5, 0], {"cup": 3, "dog": 1})
    assert set(drift(before, before)["distances"].values()) == {0.0}
    found = drift(report(60, [0, 5, 5], {"cup": 2, "cat": 2}), before)
    assert found["counts"]["images_kept"] == [90, 60]
    assert found["counts"]["triplets"] == [92, 62]
    assert found["dropped"] == {"blurry": [0.1, 0.4]}
    assert found["distances"] == {"sharpness": 0.5, "classes": 0.5, "languages": 0.0}


def test_languages_of_captions() -> None:
    captions = ["a red mug on a wooden table in the kitchen", "ein roter Becher steht auf dem Tisch in der Küche", ""]
    assert count_languages(captions) == {"en": 1, "de": 1}
    assert set(count_languages(["x 1"])) <= {UNSURE, "zxx"}
