import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lookalike.errors import ConflictError, InputError
from lookalike.evaluation.gate import Check
from lookalike.registry import Promotion, PromotionLog
from lookalike.storage import open_store


def _promotion(number: int, version: int) -> Promotion:
    return Promotion(number, version, "b" * 64, "s" * 64, version - 1 or None, [], "2026-01-01T00:00:00+00:00")


def test_last_log_entry_is_the_champion(tmp_path: Path) -> None:
    log = PromotionLog(open_store(str(tmp_path)), "acme--dog")
    assert log.head() is None
    for number in range(1, 12):
        log.append(_promotion(number, number + 1))
    assert [entry.number for entry in log.entries()] == list(range(1, 12))
    head = log.head()
    assert head is not None
    assert (head.entry.number, head.entry.version) == (11, 12)
    assert PromotionLog(open_store(str(tmp_path)), "acme").head() is None  # another model


def test_concurrent_append_of_the_same_number_is_a_conflict(tmp_path: Path) -> None:
    log = PromotionLog(open_store(str(tmp_path)), "mini")
    log.append(_promotion(1, 1))
    with pytest.raises(ConflictError):
        log.append(_promotion(1, 2))
    assert [entry.version for entry in log.entries()] == [1]


_CHECK: dict[str, Any] = {
    "name": "loss_gap.low",
    "value": 0.2,
    "threshold": 0.0,
    "passed": True,
    "why": "above 0",
}
BROKEN: dict[str, dict[str, Any] | bytes] = {
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "UTF-16": b"\xff\xfe{\0}\0",
    "cut": b'{"number": 1',
    "unknown member": {"unknown": 1},
    "number is true": {"number": True},
    "version is text": {"version": "1"},
    "no hash": {"bundle_sha256": None},
    "checks are null": {"checks": None},
    "a check of other members": {"checks": [{"x": 1}]},
    "an empty check": {"checks": [{}]},
    "a check with one member more": {"checks": [{**_CHECK, "x": 1}]},
    "a check that passed by text": {"checks": [{**_CHECK, "passed": "yes"}]},
    "another number": {"number": 2},
    "unknown kind": {"kind": "crowned"},
    "kind is a list": {"kind": ["promoted"]},
    "champion before is text": {"champion_before": "x"},
    "location is a number": {"bundle_uri": 5},
    "scores are a list": {"scores_uri": ["a"]},
    "return is text": {"returns_to": "1"},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_broken_entry_is_an_error_that_names_it(change: dict[str, Any] | bytes, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    entry = asdict(replace(_promotion(1, 1), checks=[Check(**_CHECK)]))
    store.write("mini/00000001.json", json.dumps(entry).encode())
    assert PromotionLog(store, "mini").head() is not None
    data = change if isinstance(change, bytes) else json.dumps({**entry, **change}).encode()
    store.write("mini/00000001.json", data)
    with pytest.raises(InputError, match="entry 1 of the promotion log is damaged") as refused:
        PromotionLog(store, "mini").entries()
    assert str(refused.value.value).endswith("mini/00000001.json")
