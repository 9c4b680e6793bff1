"""Registry and promotion log that were changed from outside: a refused bundle never becomes champion, and each error's
advice works."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lookalike.config import canonical_json
from lookalike.errors import ConfigError, InputError
from lookalike.registry import Promotion, Registry, resolve, standing
from lookalike.registry.champions import HEAD_TAG
from lookalike.registry.promotion_log import LOG_TAG
from lookalike.registry.versions import identify
from lookalike.storage import open_store
from lookalike.tracking.connection import connect
from pipelines.promote import PromoteConfig, RollbackConfig, promote, rollback
from tests.integration.test_promotion import bundle, scored

MODEL = "mini"


@dataclass
class World:
    """A store and a registry with a champion (``good``), a refused bundle (``bad``) and a better one to come."""

    root: Path
    uri: str
    attempts: int = 0

    def promote(self, name: str, model: str = MODEL, **settings: object) -> dict:
        """Promote bundle ``name`` at an output of its own; ``settings`` are the job's."""
        self.attempts += 1
        out = settings.pop("out", f"{self.root}/out-{self.attempts}")
        config = {"log": f"{self.root}/log", "scores": f"{self.root}/{name}/scores", "tracking": self.uri, **settings}
        return promote(PromoteConfig(model=model, out=str(out), **config))  # type: ignore[arg-type]

    def rollback(self, **settings: object) -> dict:
        """Return to an earlier champion; the decision is written to an output of its own."""
        self.attempts += 1
        config = {"out": f"{self.root}/out-{self.attempts}", "reason": "its images are grey", **settings}
        config["out"] = str(config["out"])
        return rollback(RollbackConfig(model=MODEL, tracking=self.uri, **config))  # type: ignore[arg-type]

    def champion(self, model: str = MODEL) -> str:
        """The name of the bundle that is served as champion, by resolution and by the alias."""
        reference = resolve(f"models:/{model}@champion", self.uri)
        shown = self.client.get_model_version_by_alias(model, "champion")
        assert shown.source == f"bundle://sha256/{reference.bundle_sha256}"
        return reference.bundle_uri.split("/")[-2]

    @property
    def client(self):  # type: ignore[no-untyped-def]
        return connect(self.uri)

    @property
    def log(self) -> Path:
        return self.root / "log" / MODEL

    def entry(self, number: int) -> Path:
        return self.log / f"{number:08d}.json"


@pytest.fixture(scope="module")
def built(mlflow_schema: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """First ``first`` was champion, then ``good``; ``bad`` was refused. Made once: each test gets a copy."""
    folder = tmp_path_factory.mktemp("champions")
    shutil.copyfile(mlflow_schema, folder / "mlflow.db")
    made = World(folder / "store", f"sqlite:///{folder}/mlflow.db")
    for name, figures in {
        "first": {"loss_right": 0.6}, "good": {}, "bad": {"loss_right": 0.9}, "unfit": {"loss_gap": 0.0},
        "better": {"loss_right": 0.4},
    }.items():  # fmt: skip
        of = bundle(str(made.root), name)
        scored(str(made.root), f"{name}/scores", of, **figures)
    assert made.promote("first")["promoted"]
    assert made.promote("good")["promoted"]
    assert not made.promote("bad")["promoted"]
    assert made.champion() == "good"
    made.root.rename(folder / "copy")
    return made


@pytest.fixture
def world(built: World, tmp_path: Path) -> Iterator[World]:
    """The store at its place, which the registry's tags name, and a registry of the test's own."""
    shutil.copytree(built.root.parent / "copy", built.root)
    shutil.copyfile(built.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    yield World(built.root, f"sqlite:///{tmp_path}/mlflow.db", built.attempts)
    shutil.rmtree(built.root)


def _model_deleted(world: World) -> None:
    world.client.delete_registered_model(MODEL)


def _version_deleted(world: World) -> None:
    world.client.delete_model_version(MODEL, "2")


def _log_moved(world: World) -> None:
    world.log.rename(world.root / "elsewhere")


def _log_emptied(world: World) -> None:
    for file in world.log.iterdir():
        file.unlink()


def _newest_missing(world: World) -> None:
    world.entry(2).unlink()


def _hole(world: World) -> None:
    world.entry(1).unlink()


def _entry_empty(world: World) -> None:
    world.entry(2).write_bytes(b"")


def _entry_broken(world: World) -> None:
    world.entry(2).write_text('{"number": 2}')


def _entry_of_another_kind(world: World) -> None:
    world.entry(2).write_text("[1, 2]")


def _entry_edited(world: World) -> None:
    bad = resolve(f"models:/{MODEL}/3", world.uri)
    values = json.loads(world.entry(2).read_text())
    world.entry(2).write_text(canonical_json({**values, "bundle_sha256": bad.bundle_sha256, "version": 3}))


def _log_tag_removed(world: World) -> None:
    world.client.delete_registered_model_tag(MODEL, LOG_TAG)


def _log_tag_and_alias_removed(world: World) -> None:
    _log_tag_removed(world)
    world.client.delete_registered_model_tag(MODEL, HEAD_TAG)
    world.client.delete_registered_model_alias(MODEL, "champion")


def _log_of_before_moved(world: World) -> None:
    world.client.delete_registered_model_tag(MODEL, HEAD_TAG)  # as before the tag was written
    _log_moved(world)


def _log_of_before_moved_and_alias_removed(world: World) -> None:
    _log_of_before_moved(world)
    world.client.delete_registered_model_alias(MODEL, "champion")


def _head_tag_damaged(world: World) -> None:
    world.client.set_registered_model_tag(MODEL, HEAD_TAG, "two")


def _hash_tag_edited(world: World) -> None:
    bad = resolve(f"models:/{MODEL}/3", world.uri)
    world.client.set_model_version_tag(MODEL, "2", "bundle_sha256", bad.bundle_sha256)


def _location_tag_edited(world: World) -> None:
    bad = resolve(f"models:/{MODEL}/3", world.uri)
    world.client.set_model_version_tag(MODEL, "2", "bundle_uri", bad.bundle_uri)


def _bundle_moved(world: World) -> None:
    (world.root / "good" / "bundle").rename(world.root / "good-bundle-elsewhere")


BROKEN = [
    _model_deleted, _version_deleted, _log_moved, _log_emptied, _newest_missing, _hole, _entry_empty, _entry_broken,
    _entry_of_another_kind, _entry_edited, _log_tag_removed, _log_tag_and_alias_removed, _log_of_before_moved,
    _log_of_before_moved_and_alias_removed, _head_tag_damaged, _hash_tag_edited, _location_tag_edited, _bundle_moved,
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_no_change_from_outside_makes_a_refused_bundle_champion(world: World, broken: Callable[[World], None]) -> None:
    broken(world)
    with pytest.raises(InputError) as raised:
        world.champion()
    assert raised.value.fix
    assert "\n" not in str(raised.value)
    for refused in ("bad", "unfit"):
        with suppress(InputError):  # it says that registry and log contradict each other
            decision = world.promote(refused)
            assert not decision["promoted"]
            assert decision["champion"] in (None, 2)
    with pytest.raises(InputError):
        world.champion()


@pytest.mark.parametrize("broken", BROKEN)
def test_begin_anew_recovers_from_a_lost_log(world: World, broken: Callable[[World], None]) -> None:
    broken(world)
    decision = world.promote("better", begin_anew="the log was lost", log=f"{world.root}/log", out=world.root / "anew")
    assert (decision["promoted"], decision["champion"]) == (True, decision["version"])
    assert world.champion() == "better"
    last = _last(world)
    assert (last.kind, last.reason, last.champion_before) == ("begun anew", "the log was lost", None)
    again = world.promote("better", begin_anew="the log was lost", log=f"{world.root}/log", out=world.root / "anew")
    assert again == decision
    assert _last(world) == last
    assert not world.promote("bad")["promoted"]
    assert not world.promote("unfit", begin_anew="the log was lost")["promoted"]
    assert world.champion() == "better"


def _restore_log(world: World) -> None:
    (world.root / "elsewhere").rename(world.log)


def _promote_the_champion_again(world: World) -> None:
    assert world.promote("good")["champion"] is not None


@pytest.mark.parametrize(
    ("broken", "advice"),
    [
        (_model_deleted, _promote_the_champion_again),
        (_version_deleted, _promote_the_champion_again),
        (_log_moved, _restore_log),
        (_log_of_before_moved, _restore_log),
        (_log_tag_removed, lambda world: world.client.set_registered_model_tag(MODEL, LOG_TAG, f"{world.root}/log")),
        (_head_tag_damaged, lambda world: world.client.delete_registered_model_tag(MODEL, HEAD_TAG)),
        (
            _bundle_moved,
            lambda world: world.promote("good", bundle=str(world.root / "good-bundle-elsewhere")),
        ),
        (_location_tag_edited, lambda world: world.promote("good")),
    ],
)
def test_following_the_fix_of_an_error_works(
    world: World, broken: Callable[[World], None], advice: Callable[[World], object]
) -> None:
    broken(world)
    with pytest.raises(InputError):
        world.champion()
    advice(world)
    sha256 = resolve(f"models:/{MODEL}@champion", world.uri).bundle_sha256
    assert sha256 == json.loads(world.entry(2).read_text())["bundle_sha256"]
    assert world.promote("better")["promoted"]
    assert world.champion() == "better"


def test_the_first_command_again_registers_a_lost_champion(world: World) -> None:
    world.promote("good", out=world.root / "same")
    _model_deleted(world)
    assert world.promote("good", out=world.root / "same")["champion"] is not None
    assert world.champion() == "good"
    assert _last(world).kind == "registered again"


def test_champion_in_the_outcome_is_read_back(world: World) -> None:
    first = world.promote("better", out=world.root / "same")
    assert first["champion"] == first["version"]
    world.rollback()
    again = world.promote("better", out=world.root / "same")
    assert (again["promoted"], again["champion"]) == (True, 2)


def test_a_better_bundle_follows_a_champion_whose_version_was_deleted(world: World) -> None:
    _version_deleted(world)
    assert world.promote("better")["promoted"]
    assert world.champion() == "better"


def test_a_moved_champion_is_served_from_its_new_place_at_once(world: World) -> None:
    _bundle_moved(world)
    with pytest.raises(InputError, match="name its place"):
        resolve("models:/mini@champion", world.uri)
    moved = str(world.root / "good-bundle-elsewhere")
    assert resolve("models:/mini@champion", world.uri, moved).bundle_uri == moved
    with pytest.raises(InputError, match="not the one that was registered"):
        resolve("models:/mini@champion", world.uri, str(world.root / "bad" / "bundle"))


def test_an_alias_set_by_hand_is_set_back(world: World) -> None:
    world.client.set_registered_model_alias(MODEL, "champion", "3")
    assert world.champion() == "good"
    world.client.delete_registered_model_alias(MODEL, "champion")
    assert world.champion() == "good"


def test_an_alias_without_a_log_is_an_error(world: World) -> None:
    world.client.create_registered_model("byhand")
    world.client.create_model_version("byhand", "bundle://sha256/" + "0" * 64)
    world.client.set_registered_model_alias("byhand", "champion", "1")
    with pytest.raises(InputError, match="had a champion"):
        resolve("models:/byhand@champion", world.uri)
    with pytest.raises(InputError, match="had a champion"):
        world.promote("good", model="byhand")
    world.client.delete_registered_model_alias("byhand", "champion")
    assert world.promote("good", model="byhand")["promoted"]


def test_model_renamed_in_mlflow_keeps_its_champion_or_is_an_error(world: World) -> None:
    world.client.rename_registered_model(MODEL, "renamed")
    with pytest.raises(InputError, match=r"lacks entry 2.*renamed"):
        resolve("models:/renamed@champion", world.uri)
    with pytest.raises(InputError, match="lacks entry 2"):
        world.promote("bad", model="renamed")
    with pytest.raises(InputError, match="another registry's"):
        world.promote("bad")  # the old name, whose log still names a champion
    world.log.rename(world.root / "log" / "renamed")
    assert world.champion("renamed") == "good"


def test_two_registries_do_not_share_a_log_by_accident(world: World, tmp_path: Path, mlflow_schema: Path) -> None:
    shutil.copyfile(mlflow_schema, tmp_path / "second.db")
    second = World(world.root, f"sqlite:///{tmp_path}/second.db", attempts=50)
    with pytest.raises(InputError, match="another registry's"):
        second.promote("better")
    assert second.promote("good")["promoted"]  # what the advice says: the log's champion is registered there
    assert (second.champion(), world.champion()) == ("good", "good")
    assert second.promote("better", log=f"{world.root}/other", begin_anew="a log of its own")["promoted"]
    assert (second.champion(), world.champion()) == ("better", "good")


def test_a_tracking_server_restored_from_an_older_copy(world: World) -> None:
    database = Path(world.uri.removeprefix("sqlite:///"))
    data = database.read_bytes()
    world.promote("better")
    database.write_bytes(data)
    with pytest.raises(InputError, match="older registry"):
        world.champion()
    assert not world.promote("unfit")["promoted"]
    assert world.promote("better")["champion"] is not None
    assert world.champion() == "better"


def test_other_files_in_the_log_are_named_and_ignored(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("notes.txt", "99999999.json.bak", "00000000.json", "3.json", "000000003.json", "zz/00000009.json"):
        (world.log / name).parent.mkdir(exist_ok=True)
        (world.log / name).write_text("{}")
    assert world.champion() == "good"
    assert "notes.txt" in caplog.text
    assert world.promote("better")["promoted"]
    assert world.entry(3).exists()


def test_entries_of_earlier_versions_are_read(world: World) -> None:
    new = ("kind", "reason", "returns_to", "bundle_uri", "scores_uri", "previous_sha256", "by", "public_key")
    new += ("signature",)
    for number in (1, 2):
        values = json.loads(world.entry(number).read_text())
        world.entry(number).write_text(canonical_json({key: value for key, value in values.items() if key not in new}))
    world.client.delete_registered_model_tag(MODEL, HEAD_TAG)
    assert world.champion() == "good"
    assert world.promote("better")["promoted"]
    assert world.rollback()["champion"] == 2
    assert [(entry.by == "", entry.signature) for entry in _entries(world)] == [(True, None)] * 2 + [(False, None)] * 2


def test_an_entry_that_was_changed_later_stops_a_rollback(world: World) -> None:
    values = json.loads(world.entry(1).read_text())
    world.entry(1).write_text(canonical_json({**values, "bundle_sha256": "0" * 64}))
    assert world.champion() == "good"
    with pytest.raises(InputError, match="entry 1 of the promotion log was changed"):
        world.rollback()


def test_an_entry_that_was_changed_later_stops_the_next_promotion(world: World) -> None:
    values = json.loads(world.entry(1).read_text())
    world.entry(1).write_text(canonical_json({**values, "scores_sha256": "0" * 64}))
    with pytest.raises(InputError, match="entry 1 of the promotion log was changed"):
        world.promote("better")
    assert world.champion() == "good"


def _forged(world: World, number: int, **changes: object) -> None:
    """An entry behind the newest one that no promotion wrote, for the refused bundle."""
    bad = resolve(f"models:/{MODEL}/3", world.uri)
    before = hashlib.sha256(world.entry(number - 1).read_bytes()).hexdigest()
    values = {**json.loads(world.entry(number - 1).read_text()), "number": number, "version": 3}
    values |= {"bundle_sha256": bad.bundle_sha256, "bundle_uri": bad.bundle_uri, "previous_sha256": before, **changes}
    world.entry(number).write_text(canonical_json(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "an entry that no promotion wrote: the gate refused it"),
        ({"kind": "begun anew", "previous_sha256": None}, "an entry that no promotion wrote"),
        ({"previous_sha256": None}, "entry 3 of the promotion log does not name the one before by its hash"),
        ({"previous_sha256": "0" * 64}, "entry 2 of the promotion log was changed after 3 was written"),
        ({"bundle_sha256": "0" * 64}, "no version has that bundle"),
        ({"checks": [{"name": "", "value": 0, "threshold": 0, "passed": "yes", "why": ""}]}, "entry 3 .* is damaged"),
    ],
)
def test_forged_log_entry_is_refused(world: World, changes: dict, message: str) -> None:
    _forged(world, 3, **changes)
    with pytest.raises(InputError, match=message) as refused:
        world.champion()
    assert refused.value.fix
    world.entry(3).unlink()
    assert world.champion() == "good"
    assert world.promote("better")["promoted"]


def test_refused_bundle_that_passes_later_survives_a_kill(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its log entry and the registry's tag it is not taken for a forgery."""
    scored(str(world.root), "bad/scores", bundle(str(world.root), "bad"), loss_right=0.3)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lookalike.registry.promotion.project", die)
        with pytest.raises(KeyboardInterrupt):
            world.promote("bad", out=world.root / "killed")
    assert world.champion() == "bad"
    assert world.promote("bad", out=world.root / "killed")["promoted"]


def test_manifest_that_was_edited_after_its_registration_is_refused(world: World) -> None:
    """Its identity is unchanged, since places and licences are not part of it."""
    place = world.root / "good" / "bundle" / "bundle.json"
    before = resolve(f"models:/{MODEL}@champion", world.uri).bundle_sha256
    place.write_text(json.dumps({**json.loads(place.read_text()), "licences": {"transformer": "mine"}}))
    assert identify(str(place.parent)) == before
    with pytest.raises(InputError, match=r"bundle.json of models:/mini/2 was edited since it was registered"):
        world.champion()


@pytest.mark.parametrize("damage", ["changed", "added", "removed"])
def test_damaged_bundle_is_neither_promoted_nor_rolled_back_to(world: World, damage: str) -> None:
    for name in ("better", "first"):
        file = world.root / name / "bundle" / "transformer" / "model.safetensors"
        if damage == "removed":
            file.unlink()
        else:
            (file if damage == "changed" else file.with_name("added.safetensors")).write_bytes(b"zero")
    with pytest.raises(InputError, match=r"transformer/.* (has changed|is missing|does not list)") as refused:
        world.promote("better")
    assert "download or export the bundle again" in refused.value.fix
    with pytest.raises(InputError, match=r"the bundle .* is not there|name its place"):
        world.rollback()
    assert world.champion() == "good"


def test_scores_without_measurements_are_refused(world: World) -> None:
    file = world.root / "better" / "scores" / "measurements.parquet"
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(InputError, match="measurements of these scores are missing"):
        world.promote("better")
    file.write_bytes((world.root / "good" / "scores" / "measurements.parquet").read_bytes())
    with pytest.raises(InputError, match="measurements were changed"):
        world.promote("better")
    file.write_bytes(data)
    scores = world.root / "better" / "scores" / "scores.json"
    forged = json.loads(scores.read_text())
    forged["metrics"]["loss_gap"]["low"] = 9e9
    del forged["measurements_sha256"]  # as in earlier versions
    scores.write_text(json.dumps(forged))
    with pytest.raises(InputError, match="but its measurements give"):
        world.promote("better")
    assert world.champion() == "good"


def test_champion_whose_measurements_were_changed_is_not_compared_with(world: World) -> None:
    shutil.copyfile(
        world.root / "bad" / "scores" / "measurements.parquet", world.root / "good" / "scores" / "measurements.parquet"
    )
    with pytest.raises(InputError, match=r"scores of the champion.*cannot be read: the measurements were changed"):
        world.promote("better")


def test_bundle_of_another_customer_is_refused(world: World) -> None:
    root = world.root
    acme, evil = root / "customers" / "acme" / "duck", root / "customers" / "evil" / "duck"
    of = bundle(str(acme), "run", owner="acme--duck")
    scored(str(acme), "scores", of)
    scored(str(evil), "scores", of)
    copied = shutil.copytree(acme / "run", evil / "run")
    attempts = [
        ("evil--duck", {"bundle": str(acme / "run" / "bundle"), "log": str(evil / "log")}, "belongs to acme--duck"),
        ("evil--duck", {"bundle": str(copied / "bundle"), "log": str(evil / "log")}, "belongs to acme--duck"),
        ("acme--duck", {"log": str(evil / "log")}, "log of acme--duck does not lie below"),
        ("everybody", {"log": str(root / "log")}, "a model for all customers"),
    ]
    for model, settings, message in attempts:
        with pytest.raises(InputError, match=message):
            world.promote("", model=model, scores=str(acme / "scores"), **settings)
        with pytest.raises(InputError, match=message):
            world.promote("", model=model, scores=str(acme / "scores"), begin_anew="mine", **settings)
        assert Registry(world.uri).model_tags(model) is None
    made = world.promote("", model="acme--duck", scores=str(acme / "scores"), log=str(acme / "log"))
    assert made["promoted"]
    assert resolve("models:/acme--duck@champion", world.uri).bundle_uri.endswith("customers/acme/duck/run/bundle")


def test_a_rollback_returns_to_the_champion_before(world: World) -> None:
    world.promote("better")
    back = world.rollback(out=world.root / "back")
    assert (back["version"], back["champion"], back["kind"]) == (2, 2, "rolled back")
    assert _last(world).reason == "its images are grey"
    assert world.rollback(out=world.root / "back") == back  # the same command again
    assert world.champion() == "good"
    assert world.rollback()["champion"] == 1  # one more
    with pytest.raises(InputError, match="no champion before"):
        world.rollback()
    assert world.rollback(to=4)["champion"] == 4
    assert world.champion() == "better"
    with pytest.raises(InputError, match=r"never champion.*choose from"):
        world.rollback(to=3)


def test_a_rollback_after_a_deletion_registers_what_it_returns_to(world: World) -> None:
    for version in ("1", "2"):
        world.client.delete_model_version(MODEL, version)
    (world.root / "first" / "bundle").rename(world.root / "first-moved")
    with pytest.raises(InputError, match="name its place with --bundle"):
        world.rollback()
    world.rollback(bundle=str(world.root / "first-moved"))
    assert resolve("models:/mini@champion", world.uri).bundle_uri.endswith("first-moved")


@pytest.mark.parametrize(
    "settings",
    [
        {"scores": None},
        {"scores": "x", "begin_anew": " "},
    ],
)
def test_settings_that_contradict_each_other(settings: dict) -> None:
    with pytest.raises(ConfigError):
        PromoteConfig(model=MODEL, out="x", **settings)


def _entries(world: World) -> list[Promotion]:
    log = Registry(world.uri).promotion_log(MODEL)
    assert log is not None
    return log.entries()


def _last(world: World) -> Promotion:
    now = standing(Registry(world.uri), MODEL)
    assert now is not None
    assert now.last is not None
    return now.last


def test_log_is_read_at_the_place_of_the_tag(world: World) -> None:
    log = Registry(world.uri).promotion_log(MODEL)
    assert log is not None
    assert [entry.kind for entry in log.entries()] == ["promoted", "promoted"]
    assert open_store(log.uri).exists("00000002.json")
