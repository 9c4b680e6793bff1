"""jobs/promote.py: exit codes, decision.json, subcommands, and errors that name the bad input."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import pytest

from jobs.promote import COMMANDS, main
from lookalike import config as configs
from lookalike.errors import ConflictError
from lookalike.evaluation.gate import GateConfig
from lookalike.registry import Registry, resolve
from lookalike.storage import open_store
from pipelines.entry import EXIT_ERROR, EXIT_REFUSED, run_subcommand
from pipelines.promote import ExplainConfig, PromoteConfig, RollbackConfig, explain, promote, rollback
from tests.integration.test_promotion import bundle, scored
from tests.unit.evaluation.test_gate import OF_THEN


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def _job(monkeypatch: pytest.MonkeyPatch, *arguments: str, command: str = "run") -> int:
    monkeypatch.setattr(sys, "argv", ["promote.py", command, *arguments])
    return run_subcommand(COMMANDS, main.__doc__)


def _decision(out: str) -> dict:
    return dict(json.loads(open_store(out).read("decision.json")))


def test_a_promotion_from_the_command_line(
    mlflow_database: str, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scored(root, "scores", bundle(root, "one"))
    arguments = ["--model", "mini", "--scores", f"{root}/scores", "--out", f"{root}/out", "--tracking", mlflow_database]
    assert _job(monkeypatch, *arguments, "--require-promoted") == 0
    printed = capsys.readouterr().out
    assert "ok   loss_gap.low" in printed
    assert "models:/mini/1 is champion (champion before: none)" in printed
    decision = _decision(f"{root}/out")
    assert (decision["model"], decision["version"], decision["promoted"]) == ("mini", 1, True)
    assert {"name", "value", "threshold", "passed", "why"} == set(decision["checks"][0])
    assert resolve("models:/mini@champion", mlflow_database).version == 1
    log = [info.key for info in open_store(root).list("promotion-log/")]
    assert log == ["promotion-log/mini/00000001.json"]

    before = open_store(f"{root}/out").read("decision.json")
    assert _job(monkeypatch, *arguments) == 0  # again: nothing new
    assert open_store(f"{root}/out").read("decision.json") == before
    assert _job(monkeypatch, *arguments, "--gate.floors", "[]") == EXIT_ERROR
    assert "another run's result, with another gate" in capsys.readouterr().err


def test_refusal_is_a_result_and_with_require_promoted_an_exit_code(
    mlflow_database: str, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scored(root, "scores", bundle(root, "one"), loss_gap=0.0)
    arguments = ["--model", "mini", "--scores", f"{root}/scores/scores.json", "--tracking", mlflow_database]
    assert _job(monkeypatch, *arguments, "--out", f"{root}/out") == 0
    assert _job(monkeypatch, *arguments, "--out", f"{root}/out", "--require-promoted") == EXIT_REFUSED
    assert "FAIL loss_gap.low" in capsys.readouterr().out
    assert not _decision(f"{root}/out")["promoted"]
    floors = ["--gate.floors", "[{metric: loss_gap, bound: n, above: 255}]"]
    assert _job(monkeypatch, *arguments, "--out", f"{root}/lenient", "--require-promoted", *floors) == 0


def test_named_scores_of_the_champion_are_used(
    mlflow_database: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = bundle(root, "one"), bundle(root, "two")
    scored(root, "one/scores", one)
    scored(root, "one/again", one, loss_right=0.1)
    scored(root, "two/scores", two, loss_right=0.45)
    common = ["--model", "mini", "--tracking", mlflow_database, "--log", f"{root}/log"]
    assert _job(monkeypatch, *common, "--scores", f"{root}/one/scores", "--out", f"{root}/1") == 0
    challenger = [*common, "--scores", f"{root}/two/scores"]
    better = [*challenger, "--champion-scores", f"{root}/one/again", "--out", f"{root}/2"]
    assert _job(monkeypatch, *better, "--require-promoted") == EXIT_REFUSED
    wrong = [*challenger, "--champion-scores", f"{root}/two/scores", "--out", f"{root}/3"]
    assert _job(monkeypatch, *wrong) == EXIT_ERROR
    assert _job(monkeypatch, *challenger, "--out", f"{root}/4", "--require-promoted") == 0


def test_rollback_and_history_from_the_command_line(
    mlflow_database: str, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)  # of a server of another test
    common = ["--model", "mini", "--tracking", mlflow_database]
    for name, loss in (("one", 0.5), ("two", 0.4)):
        scored(root, f"{name}/scores", bundle(root, name), loss_right=loss)
        assert _job(monkeypatch, *common, "--scores", f"{root}/{name}/scores", "--out", f"{root}/{name}/out") == 0
    for flags in (["--rollback"], ["--rollback_to", "1"]):
        with pytest.raises(SystemExit, match="2"):
            _job(monkeypatch, *common, "--scores", f"{root}/two/scores", "--out", f"{root}/other", *flags)
    with pytest.raises(SystemExit, match="2"):
        _job(monkeypatch, *common, "--scores", f"{root}/two/scores", "--out", f"{root}/back", command="rollback")
    with pytest.raises(SystemExit, match="2"):  # without a reason
        _job(monkeypatch, *common, "--out", f"{root}/back", command="rollback")
    for reason in ("", " ", "two\nlines", "x" * 1001):
        assert _job(monkeypatch, *common, "--out", f"{root}/back", "--reason", reason, command="rollback") == EXIT_ERROR
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "mia")
    back = ["--out", f"{root}/back", "--reason", "its cups are grey"]
    assert _job(monkeypatch, *common, *back, command="rollback") == 0
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert "models:/mini/1 is champion (champion before: 2)" in capsys.readouterr().out
    assert _job(monkeypatch, *common, "--json", command="history") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["kind"] for entry in entries] == ["promoted", "promoted", "rolled back"]
    assert [entry["by"].split(":")[0] for entry in entries] == ["os", "os", "mlflow"]
    assert _job(monkeypatch, *common, command="history") == 0
    printed = capsys.readouterr().out
    for text in (
        "version 1 rolled back by mlflow:mia; champion before: version 2: its cups are grey\n",
        "version 1 promoted by os:",
        "champion before: none\n",
        f"     scores {root}/one/scores {entries[0]['scores_sha256'][:12]}; judge not recorded; not signed\n",
        "3 entries in the promotion log of mini",
    ):
        assert text in printed
    assert _job(monkeypatch, "--model", "none", "--tracking", mlflow_database, command="history") == EXIT_ERROR


def test_a_promotion_recorded_before_there_were_presets_stays_finished(mlflow_database: str, root: str) -> None:
    scored(root, "scores", bundle(root, "one"))
    config = PromoteConfig("mini", f"{root}/scores", f"{root}/out", tracking=mlflow_database)
    made = promote(config)
    out = open_store(config.out)
    identity = json.loads(out.read("run.json"))["identity"]
    assert identity["gate"] == OF_THEN
    assert promote(config)["version"] == made["version"]
    with pytest.raises(ConflictError, match="another run's result, with another gate"):
        promote(dataclasses.replace(config, gate=GateConfig(preset="personal")))


def test_explain_shows_why_with_values_judge_suite_and_picture(
    mlflow_database: str, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", "mini", "--tracking", mlflow_database]
    for name, gap in (("one", 0.2), ("two", -0.2)):
        scored(root, f"{name}/scores", bundle(root, name), loss_gap=gap)
        assert _job(monkeypatch, *common, "--scores", f"{root}/{name}/scores", "--out", f"{root}/{name}/out") == 0
    assert "Refused: it makes the same images whichever photos it is given" in capsys.readouterr().out
    assert _job(monkeypatch, *common, "--version", "2", command="explain") == 0
    refused = capsys.readouterr().out
    for text in (
        "FAIL loss_gap.low",
        "loss_gap                      -0.2000 [-0.2",
        "n=256",
        "embedder e; calibration not recorded",
        "version 1, split validation, sha256 ssssssssssss",
        "cases   256, sha256",
        "gate    preset base",
        "two/scores/grid.png",
        "two/out/decision.json",
        "to do   Add photos",
        "models:/mini/2: Refused: it makes the same images whichever photos it is given.",
    ):
        assert text in refused
    assert _job(monkeypatch, *common, "--version", "1", "--json", command="explain") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["promoted"], shown["champion"], shown["advice"]) == (True, 1, [])
    assert shown["evidence"]["suite"]["sha256"] == "s" * 64
    assert shown["evidence"]["estimates"]["loss_gap"]["n"] == 256


def test_explain_reads_the_log_if_the_record_was_removed(
    mlflow_database: str, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", "mini", "--tracking", mlflow_database]
    for name, gap in (("one", 0.2), ("two", -0.2)):
        scored(root, f"{name}/scores", bundle(root, name), loss_gap=gap)
        assert _job(monkeypatch, *common, "--scores", f"{root}/{name}/scores", "--out", f"{root}/{name}/out") == 0
        open_store(f"{root}/{name}/out").delete("decision.json")
    capsys.readouterr()
    assert _job(monkeypatch, *common, "--version", "1", command="explain") == 0
    promoted = capsys.readouterr().out
    assert "promotion-log/mini/00000001.json" in promoted
    assert "cases   256" in promoted
    assert _job(monkeypatch, *common, "--version", "2", command="explain") == EXIT_ERROR
    assert "was not recorded, or its record was removed" in capsys.readouterr().err
    assert _job(monkeypatch, *common, "--version", "9", command="explain") == EXIT_ERROR


def test_explain_of_a_log_entry_of_earlier_software(mlflow_database: str, root: str) -> None:
    scored(root, "scores", bundle(root, "one"))
    promote(PromoteConfig("mini", f"{root}/scores", f"{root}/out", tracking=mlflow_database))
    log = open_store(root).child("promotion-log").child("mini")
    entry = json.loads(log.read("00000001.json"))
    del entry["evidence"]
    log.write("00000001.json", json.dumps(entry).encode())
    open_store(f"{root}/out").delete("decision.json")
    head = f"00000001:{hashlib.sha256(log.read('00000001.json')).hexdigest()}"
    Registry(mlflow_database).tag_model("mini", "promotion_log_head", head)
    shown = explain(ExplainConfig("mini", 1, tracking=mlflow_database))
    assert (shown["promoted"], shown["evidence"]) == (True, None)
    assert shown["checks"][0]["name"] == "conditions"


@pytest.mark.parametrize("to", [None, 1], ids=["to the champion before", "to a version"])
def test_a_rollback_recorded_before_there_were_subcommands_matches(
    to: int | None, mlflow_database: str, root: str
) -> None:
    made = [bundle(root, name) for name in ("one", "two")]
    for name, each, loss in zip(("one", "two"), made, (0.5, 0.4), strict=True):
        scored(root, f"{name}/scores", each, loss_right=loss)
        config = PromoteConfig("mini", f"{root}/{name}/scores", f"{root}/{name}/out", tracking=mlflow_database)
        promote(config)
    identity = {"model": "mini", "gate": OF_THEN}
    identity |= {"rollback": True} if to is None else {"rollback_to": to}
    record = {"config": identity, "identity": identity, "fingerprint": configs.fingerprint(identity)}
    back = open_store(f"{root}/back")
    back.write("run.json", json.dumps(record).encode())
    rollback(RollbackConfig("mini", back.uri, "grey", to, tracking=mlflow_database))
    assert json.loads(back.read("decision.json"))["run"] == record["fingerprint"]
    with pytest.raises(ConflictError, match="rollback"):
        rollback(RollbackConfig("mini", back.uri, "grey", None if to else 1, tracking=mlflow_database))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "../mini"], "model name"),
        (["--model", "a b"], "model name"),
        (["--scores", "{root}/nothing"], "no such object"),
        (["--bundle", "{root}/nothing"], "not a bundle"),
        (["--bundle", "{root}/two/bundle"], "belong to another bundle"),
        (["--scores", "{root}/notes.json"], "the JSON object lacks 'bundle', 'suite', 'conditions', 'metrics'"),
        (["--tracking", "http://127.0.0.1:1"], "MLflow does not answer ('http://127.0.0.1:1')"),
        (["--tracking", "mlruns"], "the tracking URI has an unknown scheme"),
        (["--gate.comparisons", "[{metric: loss_right, tolerance: -1}]"], "tolerance"),
        (["--gate.ceiling", "3"], "gate.ceiling"),
        (["--out", "gs://bucket/out"], "gs:// is not supported"),
    ],
)
def test_bad_input_is_named_and_nothing_is_promoted(
    arguments: list[str],
    message: str,
    mlflow_database: str,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scored(root, "scores", bundle(root, "one"))
    bundle(root, "two")
    open_store(root).write("notes.json", b'{"a": 1}')
    given = {"--model": "mini", "--scores": f"{root}/scores", "--out": f"{root}/out", "--tracking": mlflow_database}
    given |= dict(zip(arguments[::2], [value.replace("{root}", root) for value in arguments[1::2]], strict=True))
    try:
        code = _job(monkeypatch, *(word for pair in given.items() for word in pair))
    except SystemExit as refused:
        code = int(str(refused.code))
    assert code == EXIT_ERROR
    assert message in capsys.readouterr().err
    assert not open_store(f"{root}/out").exists("decision.json")


def test_no_tracking_server_is_named(
    root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    scored(root, "scores", bundle(root, "one"))
    assert _job(monkeypatch, "--model", "mini", "--scores", f"{root}/scores", "--out", f"{root}/out") == EXIT_ERROR
    assert "set MLFLOW_TRACKING_URI or --tracking" in capsys.readouterr().err
