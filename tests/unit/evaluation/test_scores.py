import json

import pytest

from lookalike.errors import InputError
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.scores import Scores, Source


def test_scores_round_trip() -> None:
    scores = Scores(
        bundle=Source("file:///run/bundle", "ab"),
        suite=Source("file:///dataset", "cd", version=2),
        conditions="right",
        metrics={"loss_gap": Estimate(0.1, 0.05, 0.15, 256)},
        embedder="efficientnet-lite0@0.1.0",
        base=Source("file:///base", "ef"),
        config={"seed": 0},
    )
    data = scores.to_json()
    assert Scores.from_json(data, "here") == scores
    assert json.loads(data)["metrics"]["loss_gap"] == {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 256}


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"bundle": 3}', b"null"])
def test_error_names_a_file_of_another_kind(data: bytes) -> None:
    with pytest.raises(InputError, match=r"here/scores\.json"):
        Scores.from_json(data, "here/scores.json")
