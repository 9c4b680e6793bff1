"""A promotion that was decided already, whose decision.json is damaged."""

import json
from typing import Any

import pytest

from lookalike.errors import InputError
from lookalike.storage import open_store
from pipelines.promote import DECISION, PromoteConfig, _earlier_decision

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
        _earlier_decision(config, "mini", store, "f")
    assert str(refused.value.value).endswith(DECISION)
    assert "remove it" in str(refused.value.fix)
