"""Drift: compare the report of a snapshot with that of its parent."""

from typing import Any

import numpy as np


def drift(report: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of two reports (``report.json``). The keys:

    - ``counts``: {name: [value of the parent, value of the report]}
    - ``dropped``: {reason: [share of the parent's images, share of the report's images]}
    - ``distances``: {name of a distribution, or ``classes`` or ``languages``: total variation distance in [0, 1]}; 0
      if both are the same, 1 if they do not overlap.
    """
    names = ("images_in", "images_kept", "subjects_in", "subjects")
    counts = {name: [each["counts"][name] for each in (parent, report)] for name in names}
    counts["triplets"] = [sum(each["counts"]["triplets"].values()) for each in (parent, report)]
    reasons = sorted({*parent["counts"]["dropped"], *report["counts"]["dropped"]})
    charts = parent["histograms"].keys() & report["histograms"].keys()
    distances = {
        name: _distance(*(np.array(each["histograms"][name]["counts"], float) for each in (parent, report)))
        for name in sorted(charts)
    }
    for name in ("classes", "languages"):
        labels = sorted({*parent.get(name, {}), *report[name]})
        distances[name] = _distance(
            *(np.array([each.get(name, {}).get(x, 0) for x in labels], float) for each in (parent, report))
        )
    return {
        "counts": counts,
        "dropped": {name: _shares(name, parent, report) for name in reasons},
        "distances": distances,
    }


def _shares(reason: str, *reports: dict[str, Any]) -> list[float]:
    return [round(each["counts"]["dropped"].get(reason, 0) / each["counts"]["images_in"], 4) for each in reports]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    if not one.sum() or not other.sum():
        return float(one.sum() != other.sum())
    return round(float(np.abs(one / one.sum() - other / other.sum()).sum() / 2), 3)
