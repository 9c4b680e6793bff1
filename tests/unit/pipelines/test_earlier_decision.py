"""The decision of an earlier promotion, damaged or of another run."""

import dataclasses
import json
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.storage import open_store
from lookalike.storage.claim import write_result
from pipelines.promote.config import PromoteConfig
from pipelines.promote.run import DECISION, _earlier_decision, promote
from tests.integration.test_promotion import candidate

GOOD: dict[str, Any] = {
    "model": "mini",
    "version": 1,
    "champion_before": None,
    "bundle_sha256": "b" * 64,
    "promoted": True,
    "checks": [{"name": "loss_gap.low", "value": 0.2, "threshold": 0.0, "passed": True, "why": "above"}],
}
BROKEN = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "cut": b'{"model": "mini"',
    "no version": json.dumps({name: value for name, value in GOOD.items() if name != "version"}).encode(),
    "checks are a number": json.dumps({**GOOD, "checks": 5}).encode(),
    "a check is a number": json.dumps({**GOOD, "checks": [5]}).encode(),
    "a check is empty": json.dumps({**GOOD, "checks": [{}]}).encode(),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_damaged_decision_is_an_error_that_names_it(data: bytes, tmp_path) -> None:
    store = open_store(str(tmp_path))
    store.write(DECISION, data)
    config = PromoteConfig(model="mini", out=store.uri, scores="s", tracking="none:")
    with pytest.raises(InputError) as refused:
        _earlier_decision(config, store, "f")
    assert str(refused.value.value).endswith(DECISION)
    assert "remove it" in str(refused.value.fix)


def _decided(tmp_path, decision: dict[str, Any], run: str = "f") -> PromoteConfig:
    store = open_store(str(tmp_path))
    write_result(store, DECISION, decision, run)
    return PromoteConfig(model="mini", out=store.uri, scores="s", tracking="none:")


def test_a_decision_of_another_model_or_run_is_refused(tmp_path) -> None:
    for decision, run in (({**GOOD, "model": "evil--duck"}, "f"), (GOOD, "another")):
        config = _decided(tmp_path, decision, run)
        with pytest.raises(InputError, match=r"not of this bundle|another run's"):
            _earlier_decision(config, open_store(config.out), "f")


def test_decision_of_an_earlier_version_is_checked_against_its_bundle(tmp_path, mlflow_database: str) -> None:
    judged = candidate(str(tmp_path), "one")
    config = PromoteConfig(model="mini", out=str(tmp_path / "out"), scores=judged.scores_uri, tracking=mlflow_database)
    config = dataclasses.replace(config, bundle=judged.bundle_uri)
    made = promote(config)
    store = open_store(config.out)
    sealed = json.loads(store.read(DECISION))
    earlier = {name: value for name, value in sealed.items() if name not in ("run", "seal")}
    store.write(DECISION, json.dumps(earlier).encode())
    assert promote(config)["version"] == made["version"]
    assert json.loads(store.read(DECISION)) == sealed
    for change in ({"version": 7, "promoted": False}, {"bundle_sha256": "c" * 64}, {"model": "evil--duck"}):
        store.write(DECISION, json.dumps({**earlier, **change}).encode())
        with pytest.raises(InputError, match="not of this bundle"):
            promote(config)
        store.write(DECISION, json.dumps({**sealed, **change}).encode())
        with pytest.raises(InputError, match="was changed"):
            promote(config)
