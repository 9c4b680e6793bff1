from pathlib import Path

import pytest

from lookalike.errors import ConflictError
from lookalike.registry import Promotion, PromotionLog
from lookalike.storage import open_store


def _promotion(number: int, version: int) -> Promotion:
    return Promotion(number, version, "b" * 64, "s" * 64, version - 1 or None, [], "2026-01-01T00:00:00+00:00")


def test_the_last_promotion_is_the_champion(tmp_path: Path) -> None:
    log = PromotionLog(open_store(str(tmp_path)), "acme--dog")
    assert log.last() is None
    for number in range(1, 12):
        log.append(_promotion(number, number + 1))
    assert [entry.number for entry in log.entries()] == list(range(1, 12))
    last = log.last()
    assert last is not None
    assert (last.number, last.version) == (11, 12)
    assert PromotionLog(open_store(str(tmp_path)), "acme").last() is None  # another model


def test_one_of_two_promotions_gets_the_number(tmp_path: Path) -> None:
    log = PromotionLog(open_store(str(tmp_path)), "mini")
    log.append(_promotion(1, 1))
    with pytest.raises(ConflictError):
        log.append(_promotion(1, 2))
    last = log.last()
    assert last is not None
    assert last.version == 1
