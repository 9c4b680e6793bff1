"""A lost MLflow database is rebuilt from the store, with a real MLflow: versions, tags, alias, history, explain."""

import base64
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from jobs.promote import COMMANDS
from lookalike.config import canonical_json
from lookalike.errors import InputError
from lookalike.registry import resolve
from lookalike.registry.rebuild import ModelPlan
from lookalike.signing import TRUSTED_KEYS
from lookalike.storage import open_store
from lookalike.tracking.connection import connect
from pipelines.entry import EXIT_ERROR, run_subcommand
from pipelines.promote import ExplainConfig, HistoryConfig, explain, history
from pipelines.promote.rebuild import RebuildConfig, rebuild
from tests.integration.test_champions import World, built, world  # noqa: F401, fixtures
from tests.integration.test_promotion import bundle, scored
from tests.integration.test_promotion_kills import Killed, killed_at


def _acme(world: World) -> None:  # noqa: F811
    """A customer's model with a refused version, then a champion."""
    acme = world.root / "customers" / "acme" / "duck"
    for name, gap in (("one", 0.0), ("two", 0.2)):
        scored(str(acme), f"{name}/scores", bundle(str(acme), name, owner="acme--duck"), loss_gap=gap)
        where = {"scores": str(acme / name / "scores"), "log": str(acme / "promotion-log")}
        world.promote("", model="acme--duck", out=acme / name / "promotion", **where)


@pytest.fixture
def filled(world: World) -> World:  # noqa: F811
    """Four versions of ``mini`` (first, good, bad, better), with a rollback to ``good``, and a customer's model."""
    world.promote("better")
    world.rollback(out=world.root / "back")
    _acme(world)
    return world


def _lost(world: World, mlflow_schema: Path, name: str = "second.db") -> World:  # noqa: F811
    path = Path(world.uri.removeprefix("sqlite:///")).with_name(name)
    shutil.copyfile(mlflow_schema, path)
    return World(world.root, f"sqlite:///{path}", world.attempts + 50)


def _state(uri: str) -> dict[str, Any]:
    """Everything that the registry says, without times and with one spelling of places."""
    client = connect(uri)
    return {
        model.name: {
            "tags": {**model.tags, "promotion_log": open_store(model.tags.get("promotion_log", "/")).uri},
            "aliases": {name: str(number) for name, number in model.aliases.items()},
            "versions": {
                str(version.version): (version.source, dict(version.tags))
                for version in client.search_model_versions(f"name='{model.name}'")
            },
        }
        for model in client.search_registered_models()
    }


def _rebuild(world: World, *, apply: bool = True, **settings: Any) -> dict[str, ModelPlan]:  # noqa: F811
    config = {"store": [str(world.root)], "tracking": world.uri, "apply": apply, **settings}
    return {plan.name: plan for plan in rebuild(RebuildConfig(**config))}


def test_everything_is_as_before(filled: World, mlflow_schema: Path) -> None:
    before = _state(filled.uri)
    assert len(before["mini"]["versions"]) == 4
    entries = history(HistoryConfig("mini", tracking=filled.uri))
    reasons = [explain(ExplainConfig("mini", number, tracking=filled.uri)) for number in (1, 2, 3, 4)]
    champion = resolve("models:/mini@champion", filled.uri)
    again = _lost(filled, mlflow_schema)
    dry = _rebuild(again, apply=False)
    assert (dry["mini"].missing, dry["mini"].champion, dry["mini"].notes) == ([1, 2, 3, 4], 2, [])
    assert _state(again.uri) == {}
    made = _rebuild(again)
    assert {name: (plan.done, plan.champion) for name, plan in made.items()} == {
        "acme--duck": (True, 2),
        "mini": (True, 2),
    }
    assert _state(again.uri) == before
    assert resolve("models:/mini@champion", again.uri) == champion
    assert resolve("models:/acme--duck@champion", again.uri).version == 2
    assert history(HistoryConfig("mini", tracking=again.uri)) == entries
    assert [explain(ExplainConfig("mini", number, tracking=again.uri)) for number in (1, 2, 3, 4)] == reasons
    assert not any(plan.missing for plan in _rebuild(again).values())  # again: nothing new
    assert _state(again.uri) == before
    assert again.promote("bad")["promoted"] is False  # it goes on as before
    assert again.rollback()["champion"] == 1


def test_an_intact_registry_is_left_as_it_is(filled: World) -> None:
    before = _state(filled.uri)
    plans = _rebuild(filled)
    assert all(not plan.notes and plan.problem is None for plan in plans.values())
    assert _state(filled.uri) == before


def test_numbers_stay_when_a_version_was_deleted(filled: World, mlflow_schema: Path) -> None:
    filled.client.delete_model_version("mini", "3")
    before = _state(filled.uri)
    for path in filled.root.glob("out-*/decision.json"):
        if json.loads(path.read_text())["version"] == 3:
            path.unlink()
    again = _lost(filled, mlflow_schema)
    assert _rebuild(again)["mini"].notes == ["nothing is recorded of 1 versions (3): these numbers are left out"]
    assert _state(again.uri) == before
    assert again.promote("unfit")["version"] == 5


def test_without_decisions_the_log_suffices_for_champions(filled: World, mlflow_schema: Path) -> None:
    for path in filled.root.rglob("decision.json"):
        path.unlink()
    again = _lost(filled, mlflow_schema)
    _rebuild(again)
    assert again.champion() == "good"
    assert sorted(_state(again.uri)["mini"]["versions"]) == ["1", "2", "4"]
    assert explain(ExplainConfig("mini", 2, tracking=again.uri))["promoted"]


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
def test_killed_at_every_write(after: bool, filled: World, mlflow_schema: Path) -> None:
    for path in filled.root.glob("out-*/decision.json"):  # a gap in the numbers
        if json.loads(path.read_text())["version"] == 3:
            path.unlink()
    _rebuild(expected := _lost(filled, mlflow_schema, "expected.db"))
    deletions = [(MlflowClient, "delete_model_version")]
    for number in range(100):
        again = _lost(filled, mlflow_schema, f"{number}.db")
        with killed_at(number, after=after, also=deletions) as writes, suppress(Killed):
            _rebuild(again)
        if len(writes) <= number:
            break
        _rebuild(again)
        assert _state(again.uri) == _state(expected.uri)
        assert again.champion() == "good"
    assert number >= 12, "there were fewer writes than there have to be"


def test_moved_store_is_found_by_the_hashes(filled: World, mlflow_schema: Path, tmp_path: Path) -> None:
    champion = resolve("models:/mini@champion", filled.uri).bundle_sha256
    moved = tmp_path / "elsewhere"
    shutil.copytree(filled.root, moved)
    hidden = filled.root.rename(filled.root.with_name("hidden"))
    try:
        again = _lost(filled, mlflow_schema)
        plans = _rebuild(again, store=[str(moved)])
        assert len([note for note in plans["mini"].notes if "is now at" in note]) == 4
        reference = resolve("models:/mini@champion", again.uri)
        assert (reference.bundle_sha256, reference.version) == (champion, 2)
        assert reference.bundle_uri == f"{moved.as_uri()}/good/bundle"
        assert resolve("models:/acme--duck@champion", again.uri).version == 2
    finally:
        hidden.rename(filled.root)


def _another_bundle(world: World) -> None:  # noqa: F811
    world.client.create_registered_model("mini")
    world.client.create_model_version("mini", "bundle://sha256/" + "0" * 64)


def _foreign_version(world: World) -> None:  # noqa: F811
    world.client.create_registered_model("mini")
    world.client.create_model_version("mini", "runs:/abc/model")


def _another_log(world: World) -> None:  # noqa: F811
    world.client.create_registered_model("mini", tags={"promotion_log": "file:///elsewhere"})


@pytest.mark.parametrize(
    ("holds", "problem"),
    [
        (_another_bundle, "MLflow's version 1 is another bundle"),
        (_foreign_version, "MLflow's version 1 is another bundle"),
        (_another_log, "names another promotion log"),
    ],
)
def test_what_mlflow_holds_is_not_overwritten(
    filled: World, mlflow_schema: Path, holds: Callable[[World], None], problem: str
) -> None:
    again = _lost(filled, mlflow_schema)
    holds(again)
    before = _state(again.uri)["mini"]
    acme, mini = "acme--duck", "mini"
    plans = rebuild(RebuildConfig([str(again.root)], tracking=again.uri, apply=True))
    assert (next(plans).name, (refused := next(plans)).name) == (acme, mini)
    with pytest.raises(InputError, match=r"1 models were not rebuilt.*mini"):
        next(plans)
    assert problem in str(refused.problem)
    assert _state(again.uri)[mini] == before
    assert _state(again.uri)[acme] == _state(filled.uri)[acme]


def _forge_log(world: World, home: str, model: str) -> None:  # noqa: F811
    """A customer writes a log of ``model`` that names its own bundle, and a decision, below its own prefix."""
    place = world.root / "customers" / "evil" / home
    entry = json.loads(world.entry(1).read_text())
    of = bundle(str(place), "mine")
    entry |= {"bundle_sha256": of.sha256, "bundle_uri": of.uri, "scores_uri": f"{place}/scores"}
    (place / model).mkdir(parents=True)
    (place / model / "00000001.json").write_text(canonical_json(entry))
    decision = {"model": model, "version": 9, "bundle_sha256": of.sha256, "bundle_uri": of.uri}
    (place / "decision.json").write_text(canonical_json(decision | {"scores_uri": "s", "promoted": True}))


@pytest.mark.parametrize("model", ["mini", "acme--duck", "fresh"])
def test_a_customers_records_of_other_models_do_not_count(
    filled: World, mlflow_schema: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = _state(filled.uri)
    _forge_log(filled, "promotion-log", model)
    again = _lost(filled, mlflow_schema)
    _rebuild(again)
    assert _state(again.uri) == before
    assert caplog.text.count("does not lie where that model's records belong") == 2


def _two_logs(world: World) -> None:  # noqa: F811
    shutil.copytree(world.root / "log", world.root / "copy-of-log")


def _no_log(world: World) -> None:  # noqa: F811
    shutil.rmtree(world.log)


def _damaged_entry(world: World) -> None:  # noqa: F811
    world.entry(2).write_text("{}")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_two_logs, "there are several promotion logs"),
        (_no_log, "it had a champion, and there is no promotion log"),
        (_damaged_entry, "entry 2 of the promotion log is damaged"),
    ],
)
def test_a_model_whose_log_is_in_doubt_is_not_rebuilt(
    filled: World, mlflow_schema: Path, damage: Callable[[World], None], problem: str
) -> None:
    damage(filled)
    again = _lost(filled, mlflow_schema)
    plans: dict[str, ModelPlan] = {}
    with suppress(InputError):
        for plan in rebuild(RebuildConfig([str(again.root)], tracking=again.uri, apply=True)):
            plans[plan.name] = plan
    assert problem in str(plans["mini"].problem)
    assert set(_state(again.uri)) == {"acme--duck"}
    if damage is _two_logs:
        _rebuild(again, log=[f"{again.root}/log"])
        assert again.champion() == "good"


def test_decision_that_was_edited_is_passed_over(
    filled: World, mlflow_schema: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = [p for p in filled.root.glob("out-*/decision.json") if json.loads(p.read_text())["version"] == 3]
    path.write_text(path.read_text().replace('"promoted": false', '"promoted": true'))
    again = _lost(filled, mlflow_schema)
    _rebuild(again)
    assert "3" not in _state(again.uri)["mini"]["versions"]
    assert "the result was changed after the job wrote it" in caplog.text


def test_unsigned_log_is_not_rebuilt_where_keys_are_trusted(
    filled: World, mlflow_schema: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, base64.b64encode(bytes(32)).decode())
    again = _lost(filled, mlflow_schema)
    plans = rebuild(RebuildConfig([str(again.root)], tracking=again.uri, apply=True, model="mini"))
    assert "is not signed" in str(next(plans).problem)
    assert _state(again.uri) == {}


def test_from_the_command_line(
    filled: World, mlflow_schema: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = _lost(filled, mlflow_schema)

    def job(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["promote.py", "rebuild", "--tracking", again.uri, *arguments])
        return run_subcommand(COMMANDS, "x")

    assert job("--store", str(filled.root)) == 0
    printed = capsys.readouterr().out
    assert "mini: 4 versions, champion 2; 4 versions to register: 1-4\n" in printed
    assert printed.endswith("2 models: nothing changed; add --apply\n")
    assert job("--store", str(filled.root), "--apply", "--model", "mini") == 0
    assert "mini: 4 versions, champion 2; agrees with the store\n" in capsys.readouterr().out
    assert job("--store", str(filled.root / "nothing")) == EXIT_ERROR
    assert "no promotion is recorded here" in capsys.readouterr().err
    assert job() == EXIT_ERROR
    assert "there is no place to rebuild from" in capsys.readouterr().err
