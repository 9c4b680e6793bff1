"""A scores file with invalid members is an error that names it, and metrics that are not finite never pass the gate."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.gate import Comparison, Floor, GateConfig, decide
from lookalike.evaluation.scores import Scores, Source


def scores(gap: float = 0.2, loss: float = 0.5) -> Scores:
    metrics = {"loss_gap": Estimate(gap, gap, gap, 8), "loss_right": Estimate(loss, loss, loss, 8)}
    return Scores(Source("file:///b", "b" * 64), Source("file:///s", "s" * 64, 1), "right", metrics, "e")


def _changed(*path: str, value: Any) -> bytes:
    document = json.loads(scores().to_json())
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(document).encode()


BROKEN = {
    "deep": b"[" * 100_000,
    "null": b"null",
    "metrics are null": _changed("metrics", value=None),
    "a metric is text": _changed("metrics", "loss_gap", value="x"),
    "a mean is text": _changed("metrics", "loss_gap", "mean", value="0.2"),
    "a mean is null": _changed("metrics", "loss_gap", "mean", value=None),
    "a mean is true": _changed("metrics", "loss_gap", "mean", value=True),
    "an end is a list": _changed("metrics", "loss_gap", "low", value=[]),
    "a count is huge": _changed("metrics", "loss_gap", "n", value=10**400),
    "a location is a number": _changed("bundle", "uri", value=5),
    "a hash is null": _changed("bundle", "sha256", value=None),
    "a hash is empty": _changed("suite", "sha256", value=""),
    "a mean is infinite": _changed("metrics", "loss_gap", "mean", value=math.inf),
    "an end is text with an exponent": _changed("metrics", "loss_gap", "high", value="9e9"),
    "a count is a fraction": _changed("metrics", "loss_gap", "n", value=8.5),
    "a count is negative": _changed("metrics", "loss_gap", "n", value=-1),
    "the hash of the measurements is a number": _changed("measurements_sha256", value=5),
    "conditions of another name": _changed("conditions", value="wrong"),
    "conditions are a list": _changed("conditions", value=[]),
    "an embedder is a number": _changed("embedder", value=5),
    "a base is text": _changed("base", value="x"),
    "settings are text": _changed("config", value="x"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_scores_are_an_error_that_names_the_file(data: bytes) -> None:
    with pytest.raises(InputError) as refused:
        Scores.from_json(data, "file:///scores.json")
    assert refused.value.value == "file:///scores.json"
    assert refused.value.fix


def test_scores_are_read_back_unchanged() -> None:
    assert Scores.from_json(scores().to_json(), "scores.json") == scores()
    hashed = replace(scores(), measurements_sha256="m" * 64)
    assert Scores.from_json(hashed.to_json(), "scores.json") == hashed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_that_are_not_finite_never_pass(value: float) -> None:
    gate = GateConfig(floors=[Floor("loss_gap", 0.0)], comparisons=[Comparison("loss_right", "lower")])
    assert decide(scores(), scores(), gate).passed
    assert not decide(scores(gap=value), None, gate).passed
    assert not decide(scores(loss=value), scores(), gate).passed
    assert not decide(scores(), scores(loss=value), gate).passed
