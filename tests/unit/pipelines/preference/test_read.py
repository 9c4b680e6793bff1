"""Choices that come back: which files and judges count, and what they say about the models."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import ConflictError, InputError
from pipelines.preference import ReadConfig, read
from pipelines.preference.choices import Export, assess, checksum, parse_export
from pipelines.preference.pairs import Key
from tests.judged import judge

TASTE = {"a": 3.0, "b": 0.0, "c": -3.0}


def _save(folder: Path, export: Export, name: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name or export.judge}.json"
    path.write_text(json.dumps(dataclasses.asdict(export)))
    return path


def _sealed(export: Export, **changes: Any) -> Export:
    changed = dataclasses.replace(export, **changes)
    return dataclasses.replace(changed, checksum=checksum(changed))


def _read(page: Path, choices: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return read(ReadConfig(pairs=str(page), choices=[str(choices)], out=str(out), **changes))


def test_results_order_the_models_as_the_judges_do(page: Path, key: Key, tmp_path: Path) -> None:
    for name in ("anna", "ben", "cleo"):
        _save(tmp_path / "choices", judge(key, name, TASTE))
    result = _read(page, tmp_path / "choices", tmp_path / "out")
    found = result["criteria"]["overall"]
    assert (found["votes"], found["pairs"], found["judges"], found["subjects"]) == (90, 30, 3, 4)
    assert [(r["model"], r["against"]) for r in found["win_rates"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert sum(r["wins"] + r["ties"] + r["losses"] for r in found["win_rates"]) == 90
    assert all(r["low"] <= r["share"] <= r["high"] and r["share"] > 0.7 for r in found["win_rates"])
    assert [s["model"] for s in sorted(found["strengths"], key=lambda s: -s["strength"])] == ["a", "b", "c"]
    assert found["alpha"] > 0.5
    (metric,) = found["metrics"]
    assert metric["metric"] == "identity"
    assert metric["share"]["mean"] > 0.85
    assert metric["tau"] > 0.3
    text = (tmp_path / "out" / "preference.md").read_text()
    assert "| a over b" in text
    assert "file:///secret/0.9" in text
    assert json.loads((tmp_path / "out" / "preference.json").read_text())["criteria"]["overall"] == found


def test_same_choices_give_the_same_bytes_and_others_need_another_place(page: Path, key: Key, tmp_path: Path) -> None:
    for name in ("anna", "ben"):
        _save(tmp_path / "choices", judge(key, name, TASTE))
    result = _read(page, tmp_path / "choices", tmp_path / "out")
    assert _read(page, tmp_path / "choices", tmp_path / "out") == result
    _read(page, tmp_path / "choices", tmp_path / "again")
    for name in ("preference.json", "preference.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    _save(tmp_path / "choices", judge(key, "cleo", TASTE))
    with pytest.raises(ConflictError):
        _read(page, tmp_path / "choices", tmp_path / "out")


def test_judge_who_clicks_at_random_does_not_count(page: Path, key: Key, tmp_path: Path) -> None:
    _save(tmp_path / "choices", judge(key, "anna", TASTE))
    for name in ("r1", "r2"):
        _save(tmp_path / "choices", judge(key, name, TASTE, attentive=False))
    result = _read(page, tmp_path / "choices", tmp_path / "out")
    kept = {row["judge"]: row["kept"] for row in result["judges"]}
    assert kept == {"anna": True, "r1": False, "r2": False}
    assert all("are asked for" in row["reason"] for row in result["judges"] if not row["kept"])
    assert result["criteria"]["overall"]["judges"] == 1
    with pytest.raises(InputError, match="no judge passes"):
        _read(page, tmp_path / "choices" / "r1.json", tmp_path / "none")


def test_checks_and_repeats_are_counted(key: Key) -> None:
    """A judge with every check right, who contradicts the first choice at three of four repeats."""
    export = judge(key, "anna", TASTE)
    choices = {row.pair: row for row in export.choices}
    repeats = [pair for pair in key.pairs.values() if pair.kind == "repeat"]
    for number, pair in enumerate(repeats):
        choices[pair.repeats] = dataclasses.replace(choices[pair.repeats], choice="first", left="first")
        answer = "second" if number < 3 else "tie"
        choices[pair.id] = dataclasses.replace(choices[pair.id], choice=answer, left="second")
    found = assess("f", _sealed(export, choices=list(choices.values())), key, 0.8, 0.5)
    assert (found.checks, found.checks_right) == (5, 5)
    assert (found.repeats, found.repeats_consistent) == (4, 1)
    assert not found.kept
    assert found.reason == "1 of 4 repeated pairs consistent, at least 50% are asked for"
    assert assess("f", _sealed(export, choices=list(choices.values())), key, 0.8, 0.25).kept


def test_judge_without_an_attention_check_does_not_count(key: Key) -> None:
    export = judge(key, "anna", TASTE)
    some = [row for row in export.choices if key.pairs[row.pair].kind == "models"]
    found = assess("f", _sealed(export, choices=some), key, 0.8, 0.5)
    assert found.reason == "answered no attention check"


def test_side_that_a_judge_prefers_is_shown(key: Key) -> None:
    export = judge(key, "anna", TASTE)
    lefts = [dataclasses.replace(row, choice=row.left) for row in export.choices]
    assert assess("f", _sealed(export, choices=lefts), key, 0, 0).left_share == 1
    ties = [dataclasses.replace(row, choice="tie") for row in export.choices]
    assert assess("f", _sealed(export, choices=ties), key, 0, 0).left_share is None


DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("not valid JSON", lambda data: data[: len(data) // 2]),
    ("not valid JSON", lambda data: b""),
    ("not an object", lambda data: b"[]"),
    ("lacks", lambda data: b'{"format": "lookalike-preference-1"}'),
    ("edited or truncated", lambda data: data.replace(b'"tie"', b'"first"', 1).replace(b'"first"', b'"second"', 1)),
    ("not UTF-8", lambda data: data.replace(b"anna", b"ann\xe9")),
    ("Extra inputs|unknown|Unexpected", lambda data: data.replace(b'"ms": 900', b'"ms": 900, "x": 1', 1)),
    ("choice", lambda data: data.replace(b'"choice": "first"', b'"choice": "best"', 1)),
    ("more than the 4 MiB", lambda data: data + b" " * (5 << 20)),
    ("nested too deeply", lambda data: b"[" * 100_000),
]


@pytest.mark.parametrize(("problem", "damage"), DAMAGE)
def test_damaged_file_is_left_out_with_a_reason(
    page: Path, key: Key, tmp_path: Path, problem: str, damage: Callable[[bytes], bytes]
) -> None:
    _save(tmp_path / "choices", judge(key, "ben", TASTE))
    bad = _save(tmp_path / "choices", judge(key, "anna", TASTE))
    bad.write_bytes(damage(bad.read_bytes()))
    result = _read(page, tmp_path / "choices", tmp_path / "out")
    (left_out,) = result["left_out"]
    assert left_out["file"] == bad.as_uri()
    import re

    assert re.search(problem, left_out["reason"])
    assert [row["judge"] for row in result["judges"]] == ["ben"]
    with pytest.raises(InputError, match="none of 1 files"):
        _read(page, bad, tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: {"page": "0" * 32}, "another page"),
        (lambda e: {"format": "lookalike-preference-9"}, "this version"),
        (lambda e: {"judge": "../anna"}, "id"),
        (lambda e: {"judge": "Anna"}, "id"),
        (lambda e: {"choices": []}, "no choices"),
        (lambda e: {"choices": [*e.choices, e.choices[0]]}, "twice"),
        (lambda e: {"choices": [dataclasses.replace(e.choices[0], pair="0" * 16)]}, "no such question"),
        (lambda e: {"choices": [dataclasses.replace(e.choices[0], criterion="taste")]}, "no such question"),
        (lambda e: {"choices": [dataclasses.replace(e.choices[0], ms=-1)]}, "no such question"),
    ],
)
def test_wrong_export_with_a_valid_checksum_is_refused(
    key: Key, change: Callable[[Export], dict[str, Any]], problem: str
) -> None:
    export = judge(key, "anna", TASTE)
    data = json.dumps(dataclasses.asdict(_sealed(export, **change(export)))).encode()
    with pytest.raises(InputError, match=problem):
        parse_export(data, "file:///anna.json", key)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_file_saved_by_an_editor_in_another_encoding_is_read(key: Key, encoding: str) -> None:
    export = judge(key, "anna", TASTE)
    data = json.dumps(dataclasses.asdict(export), indent=2).encode(encoding)
    assert parse_export(data, "file:///anna.json", key) == export


def test_of_two_files_of_a_judge_the_longer_counts(page: Path, key: Key, tmp_path: Path) -> None:
    export = judge(key, "anna", TASTE)
    part = _save(tmp_path / "choices", _sealed(export, choices=export.choices[:7]), "anna-early")
    _save(tmp_path / "choices", export)
    result = _read(page, tmp_path / "choices", tmp_path / "out")
    assert [row["choices"] for row in result["judges"]] == [len(export.choices)]
    assert [row["file"] for row in result["left_out"]] == [part.as_uri()]
    assert "also in" in result["left_out"][0]["reason"]


def test_two_people_with_one_id_are_both_left_out(page: Path, key: Key, tmp_path: Path) -> None:
    _save(tmp_path / "choices", judge(key, "ben", TASTE))
    for seed in (1, 2):
        _save(tmp_path / "choices", judge(key, "anna", TASTE, seed=seed), f"anna-{seed}")
    result = _read(page, tmp_path / "choices", tmp_path / "out")
    assert [row["judge"] for row in result["judges"]] == ["ben"]
    assert len(result["left_out"]) == 2
    assert all("contradict" in row["reason"] for row in result["left_out"])


def test_missing_files_are_errors(page: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \*\.json"):
        _read(page, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="file of choices does not exist"):
        _read(page, tmp_path / "anna.json", tmp_path / "out")


def test_ties_and_partial_choices_count(page: Path, key: Key, tmp_path: Path) -> None:
    export = judge(key, "anna", TASTE)
    rows = [
        dataclasses.replace(row, choice="tie") if key.pairs[row.pair].kind == "models" else row
        for row in export.choices
    ]
    models = [row for row in rows if key.pairs[row.pair].kind == "models"][:10]
    rest = [row for row in rows if key.pairs[row.pair].kind == "check"]
    _save(tmp_path / "choices", _sealed(export, choices=models + rest))
    found = _read(page, tmp_path / "choices", tmp_path / "out")["criteria"]["overall"]
    assert found["votes"] == 10
    assert {rate["share"] for rate in found["win_rates"]} == {0.5}
    assert sum(rate["ties"] for rate in found["win_rates"]) == 10
    assert found["metrics"] == []  # no pair is decided
    assert found["alpha"] is None
    assert np.allclose([s["strength"] for s in found["strengths"]], 0)
