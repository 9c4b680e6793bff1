"""Control files that are damaged, forged or another run's: a clear error, never a result that this job did not make."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookalike.config import canonical_json, fingerprint
from lookalike.errors import ConflictError, InputError, LookalikeError
from lookalike.storage import Store, open_store
from lookalike.storage.claim import RECORD, claim, inside, read_claim, read_result, write_result
from lookalike.storage.store import MOST_BYTES
from lookalike.tracking import events
from lookalike.tracking.files import JsonLinesTracker
from pipelines import report
from pipelines.finetune.run import _RESULT as FINETUNED
from pipelines.generate.generation import _RESULT as GENERATED
from pipelines.promote.run import _DECISION as DECIDED
from pipelines.train.result import _RESULT as TRAINED
from pipelines.train.tracked import RECORD as TRACKED
from pipelines.train.tracked import _read as read_tracked

CONFIG = {"seed": 1, "stages": [{"name": "a", "steps": 3}]}
CHECK = {"name": "loss_gap.low", "value": 0.2, "threshold": 0.0, "passed": True, "why": "above"}
RESULTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "training result.json": (
        TRAINED,
        {"bundle_uri": "file:///x", "bundle_sha256": "b" * 64, "steps": 3, "tracking_run": "r", "stages": []},
    ),
    "finetune result.json": (
        FINETUNED,
        {"customer": "acme", "subject": "mug", "model": "acme--mug", "version": 1, "promoted": True,
         "bundle_uri": "file:///x", "bundle_sha256": "b" * 64, "scores": "file:///s"},
    ),
    "decision.json": (
        DECIDED,
        {"model": "mini", "version": 1, "champion_before": None, "bundle_sha256": "b" * 64, "promoted": True,
         "checks": [CHECK]},
    ),
    "generations.json": (GENERATED, {"model": {}, "references": [], "images": [], "config": {}}),
}  # fmt: skip


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        record = json.loads(data)
        change(record)
        return json.dumps(record).encode()

    return damage


def _first(record: dict[str, Any]) -> str:
    return next(name for name in sorted(record) if name not in ("run", "seal"))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "blank": lambda data: b"\n",
    "cut": lambda data: data[: len(data) // 2],
    "not JSON": lambda data: b"\x89PNG\r\n\x1a\n" + data,
    "not UTF-8": lambda data: data.replace(b'"', b'"\xff', 1),
    "UTF-16": lambda data: json.dumps("x").encode("utf-16") + b"\x00",
    "a list": lambda data: b"[]",
    "null": lambda data: b"null",
    "a number": lambda data: b"1e999",
    "an empty object": lambda data: b"{}",
    "deep": lambda data: b'{"run": ' * 100_000,
    "too deep for those who walk it": lambda data: data.rstrip()[:-1] + b', "x": ' + b"[" * 400 + b"]" * 400 + b"}",
    "a number of 5000 digits": lambda data: data.rstrip()[:-1] + b', "x": ' + b"9" * 5000 + b"}",
    "huge": lambda data: data + b" " * MOST_BYTES,
    "null bytes": lambda data: bytes(len(data)),
}
FORGED: dict[str, Callable[[bytes], bytes]] = {
    "a value is missing": _edit(lambda record: record.pop(_first(record))),
    "a value is null": _edit(lambda record: record.update({_first(record): 5.5})),
    "a value was changed": _edit(lambda record: record.update(added="x")),
    "a seal is a number": _edit(lambda record: record.update(seal=1)),
    "a seal is null": _edit(lambda record: record.update(seal=None)),
    "another run": _edit(lambda record: record.update(run="f" * 64)),
    "a run is a list": _edit(lambda record: record.update(run=[])),
    "no run": _edit(lambda record: record.pop("run")),
}


def _refused(read: Callable[[], object], where: str) -> LookalikeError:
    with pytest.raises(LookalikeError) as refused:
        read()
    assert where in str(refused.value)
    assert refused.value.fix
    assert len(str(refused.value)) < 1500
    return refused.value


@pytest.mark.parametrize("damage", [*BROKEN, *FORGED])
@pytest.mark.parametrize("name", RESULTS)
def test_damaged_and_forged_results_are_refused(name: str, damage: str, tmp_path: Path) -> None:
    kinds, result = RESULTS[name]
    store = open_store(str(tmp_path))
    run = claim(store, CONFIG)
    write_result(store, "r.json", result, run)
    assert read_result(store, "r.json", run, kinds) == (result, True)
    store.write("r.json", {**BROKEN, **FORGED}[damage](store.read("r.json")))
    assert "r.json" in str(_refused(lambda: read_result(store, "r.json", run, kinds), "r.json").value)


@pytest.mark.parametrize("name", RESULTS)
def test_every_value_of_another_type_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    kinds, result = RESULTS[name]
    store = open_store(str(tmp_path))
    for member in kinds:
        for value in (5.5, True, None, [], {}, "x", 1):
            expected = getattr(kinds[member], "__origin__", kinds[member])  # list of list[Check]
            right = isinstance(value, expected) and (not isinstance(value, bool) or expected is bool)
            write_result(store, "r.json", {**result, member: value}, "f")  # also by one who knows how to seal it
            if right:
                read_result(store, "r.json", "f", kinds)
            else:
                assert member in _refused(lambda: read_result(store, "r.json", "f", kinds), "r.json").what


@pytest.mark.parametrize("name", RESULTS)
def test_the_result_of_another_customers_run_is_refused(name: str, tmp_path: Path) -> None:
    kinds, result = RESULTS[name]
    ours, theirs = open_store(str(tmp_path / "acme")), open_store(str(tmp_path / "evil"))
    run, other = claim(ours, {**CONFIG, "customer": "acme"}), claim(theirs, {**CONFIG, "customer": "evil"})
    write_result(theirs, "r.json", result, other)
    ours.write("r.json", theirs.read("r.json"))
    assert "another run's" in _refused(lambda: read_result(ours, "r.json", run, kinds), "r.json").what


@pytest.mark.parametrize("name", RESULTS)
def test_result_without_a_seal_is_of_an_earlier_version(name: str, tmp_path: Path) -> None:
    kinds, result = RESULTS[name]
    store = open_store(str(tmp_path))
    store.write("r.json", json.dumps(result).encode())
    assert read_result(store, "r.json", "f", kinds) == (result, False)


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_claim_is_refused(damage: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    claim(store, CONFIG)
    store.write(RECORD, BROKEN[damage](store.read(RECORD)))
    _refused(lambda: read_claim(store), RECORD)
    _refused(lambda: claim(store, CONFIG), RECORD)


def test_a_claim_that_was_edited_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    claim(store, {"seed": 2})
    record = json.loads(store.read(RECORD))
    record["identity"]["seed"] = 1
    store.write(RECORD, json.dumps(record).encode())
    assert "was changed" in _refused(lambda: claim(store, {"seed": 1}), RECORD).what
    record["fingerprint"] = fingerprint(record["identity"])  # as a whole: then it is another run's, or this one's
    store.write(RECORD, canonical_json(record).encode())
    with pytest.raises(ConflictError):
        claim(store, {"seed": 2})


# pragma: allowlist nextline secret
@pytest.mark.parametrize("uri", ["file:///elsewhere", "s3://bucket/x", "../x", 5, None, [], "http://u:pw@h/x", ""])
def test_document_that_names_a_place_outside_is_refused(uri: object, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "customers" / "acme"))
    with pytest.raises(LookalikeError):
        inside(store, uri, "x")
    assert inside(store, store.child("scores").uri, "x").uri == store.child("scores").uri


def test_a_report_reads_no_scores_of_another_customer(tmp_path: Path) -> None:
    ours, theirs = open_store(str(tmp_path / "acme")), open_store(str(tmp_path / "evil" / "scores"))
    result = {"customer": "acme", "subject": "mug", "scores": theirs.uri}
    ours.write("result.json", json.dumps(result).encode())
    assert "outside" in _refused(lambda: report._finetune(ours), "result.json").what
    ours.write("metrics.jsonl", b"")
    trained = {"steps": 3, "stages": [], "bundle_uri": theirs.uri}
    ours.write("result.json", json.dumps(trained).encode())
    assert "outside" in _refused(lambda: report._training(ours), "result.json").what


READERS: dict[str, tuple[str, dict[str, Any], Callable[[Store], object]]] = {
    "training": ("result.json", {"steps": 3, "stages": [], "bundle_uri": "x"}, report._training),
    "finetune": ("result.json", {"customer": "a", "subject": "b", "scores": "x"}, report._finetune),
    "decision": (
        "decision.json",
        {"model": "m", "promoted": True, "checks": [CHECK]},
        lambda store: report._decision(store.uri),
    ),
    "generation": ("generations.json", {"model": {"name": "m"}, "images": []}, report._generation),
}


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_a_report_of_damaged_documents_names_them(name: str, damage: str, tmp_path: Path) -> None:
    key, document, read = READERS[name]
    store = open_store(str(tmp_path))
    store.write("metrics.jsonl", b"")
    store.write(key, BROKEN[damage](json.dumps(document).encode()))
    _refused(lambda: read(store), key)


@pytest.mark.parametrize("name", READERS)
def test_a_report_of_documents_with_odd_values_is_an_error(name: str, tmp_path: Path) -> None:
    key, document, read = READERS[name]
    store = open_store(str(tmp_path))
    store.write("metrics.jsonl", b'{"loss": "x", "step": []}\n')
    for member, right in document.items():
        for value in (None, 5, [5], {"x": 1}, "\0", "../../etc"):
            if name == "decision" and type(value) is type(right) is str:
                continue  # a name that is shown, and no place
            store.write(key, json.dumps({**document, member: value}).encode())
            with pytest.raises(LookalikeError):
                read(store)


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_record_of_the_trackers_run_is_left_out(damage: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(TRACKED, BROKEN[damage](b'{"tracking_run": "r", "submitted": 1.0}'))
    assert read_tracked(store) is None or damage in ("huge",)


@pytest.mark.parametrize("submitted", [1e300, -1, "1", True, None, [], 10**400])
def test_an_odd_time_of_submission_is_left_out(submitted: object, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(TRACKED, json.dumps({"tracking_run": "r", "submitted": submitted}).encode())
    assert read_tracked(store) is None


@pytest.mark.parametrize(
    "name",
    [
        *("../../../x.txt", "/x.txt", "a/../../x", "", "..", "a//b", "a/./b", "\0"),
        pytest.param("a/\ud800.png", id="half a surrogate pair"),
        pytest.param("a" * 256, id="a long name"),
    ],
)
def test_pending_events_write_no_file_outside_of_their_run(name: str, tmp_path: Path) -> None:
    line = {"kind": "artifact", "values": {}, "step": 0, "time_ms": None, "name": name, "data": "eA=="}
    assert events.decode(json.dumps(line).encode()) == []
    tracker = JsonLinesTracker(tmp_path / "runs", "e")
    with pytest.raises(InputError):
        tracker.log_artifact(Path(__file__), name or "..")
    assert list(tmp_path.rglob("*.py")) == []


@pytest.mark.parametrize("change", [{"kind": "x"}, {"values": []}, {"step": "1"}, {"step": 10**400}, {"time_ms": 1.5},
                                    {"name": 5}, {"kind": "metrics", "values": {"a": "b"}}, {"data": 5}])  # fmt: skip
def test_pending_events_of_odd_types_are_left_out(change: dict[str, Any]) -> None:
    line = {"kind": "tags", "values": {}, "step": 0, "time_ms": None, "name": "n", "data": ""}
    assert len(events.decode(json.dumps(line).encode())) == 1
    assert events.decode(json.dumps({**line, **change}).encode()) == []


@pytest.mark.parametrize("name", ["..", ".", "../..", "a/../../b"])
def test_run_or_experiment_outside_the_root_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert JsonLinesTracker(root, name).folder.resolve().is_relative_to(root.resolve() / "")
    assert len(JsonLinesTracker(root, name).folder.relative_to(root).parts) == 2
    with pytest.raises(InputError):
        JsonLinesTracker(root, "e", run_id=name)
