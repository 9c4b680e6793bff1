"""Promotion with a real MLflow: the gate decides, the log records it, the alias follows the log."""

import hashlib
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lookalike.bundles.manifest import bundle_sha256
from lookalike.errors import ConfigError, InputError, RefusedError
from lookalike.evaluation.gate import GateConfig
from lookalike.evaluation.measurements import MEASUREMENTS, SCHEMA, estimates, to_parquet
from lookalike.evaluation.scores import Scores, Source
from lookalike.models.presets import load_preset
from lookalike.registry import Candidate, Outcome, Registry, personal_model_name, promote, resolve
from lookalike.storage import open_store
from lookalike.tracking.connection import connect

GOOD = {"loss_gap": 0.2, "loss_right": 0.5, "identity_margin": 0.1}


def bundle(root: str, name: str, base: Source | None = None, owner: str | None = None) -> Source:
    """A bundle with what the registry reads: a manifest, and a file that it lists."""
    store = open_store(f"{root}/{name}/bundle")
    store.write("transformer/model.safetensors", name.encode())
    components = {"transformer/model.safetensors": hashlib.sha256(name.encode()).hexdigest()}
    preset = json.loads(json.dumps(asdict(load_preset("mini"))))
    manifest: dict[str, Any] = {"format": 1, "base": None, "preset": preset, "components": components}
    if base is not None:
        manifest["base"] = {"uri": base.uri, "sha256": base.sha256}
    if owner is not None:
        manifest["owner"] = owner
    store.write("bundle.json", json.dumps(manifest).encode())
    return Source(store.uri, bundle_sha256(manifest))


def scored(root: str, name: str, of: Source, conditions: str = "right", **means: float) -> str:
    """Scores of a bundle with their measurements, by default good ones; their URI."""
    rows = [
        {"unit": 0, "case": f"{i}", "subject": f"s{i % 16}", "metric": metric, "value": mean + (-0.05, 0.05)[i % 2]}
        for metric, mean in (GOOD | means).items()
        for i in range(256)
    ]
    suite = Source(f"{root}/suite", "s" * 64, 1)
    scores = Scores(bundle=of, suite=suite, conditions=conditions, metrics={}, embedder="e")  # type: ignore[arg-type]
    data = to_parquet(pa.Table.from_pylist(rows, SCHEMA), scores.evaluation())
    metrics, sha256 = estimates(data, 0, "measurements"), hashlib.sha256(data).hexdigest()
    scores = replace(scores, metrics=metrics, measurements_sha256=sha256)
    store = open_store(f"{root}/{name}")
    store.write(MEASUREMENTS, data)
    store.write("scores.json", scores.to_json())
    return f"{root}/{name}/scores.json"


def candidate(root: str, name: str, model: str = "mini", **means: float) -> Candidate:
    made = bundle(root, name)
    return Candidate(model, made.uri, scored(root, f"{name}/scores", made, **means))


def judge(who: Candidate, tracking: str, root: str) -> Outcome:
    return promote(Registry(tracking), who, log_uri=f"{root}/log", gate=GateConfig())


@pytest.fixture
def root(tmp_path: Path) -> str:
    return (tmp_path / "store").as_uri()


def test_promoted_then_challenged(mlflow_database: str, root: str) -> None:
    first = judge(candidate(root, "one"), mlflow_database, root)
    assert (first.version, first.promoted, first.champion_before) == (1, True, None)
    champion = resolve("models:/mini@champion", mlflow_database)
    assert (champion.name, champion.version, champion.bundle_sha256) == ("mini", 1, first.bundle_sha256)
    assert str(champion) == "models:/mini/1"
    assert champion.scores_uri == f"{root}/one/scores/scores.json"

    worse = judge(candidate(root, "two", loss_right=0.9), mlflow_database, root)
    assert (worse.version, worse.promoted, worse.champion_before) == (2, False, 1)
    assert [check.name for check in worse.checks if not check.passed] == ["loss_right vs champion"]
    assert resolve("models:/mini@champion", mlflow_database).version == 1
    assert resolve("models:/mini/2", mlflow_database).bundle_sha256 == worse.bundle_sha256

    better = judge(candidate(root, "three", loss_right=0.4), mlflow_database, root)
    assert (better.version, better.promoted, better.champion_before) == (3, True, 1)
    assert resolve("models:/mini@champion", mlflow_database).version == 3
    versions = {v.version: v.tags["gate"] for v in connect(mlflow_database).search_model_versions("name='mini'")}
    assert {str(number): gate for number, gate in versions.items()} == {
        "1": "promoted",
        "2": "refused",
        "3": "promoted",
    }


def test_refused_first_candidate_leaves_no_champion(mlflow_database: str, root: str) -> None:
    refused = judge(candidate(root, "one", loss_gap=0.0), mlflow_database, root)
    assert (refused.promoted, refused.champion_before) == (False, None)
    with pytest.raises(InputError, match="mini has no champion"):
        resolve("models:/mini@champion", mlflow_database)


def test_the_same_promotion_again_changes_nothing(mlflow_database: str, root: str) -> None:
    judge(candidate(root, "one"), mlflow_database, root)
    who = candidate(root, "two", loss_right=0.4)
    outcomes = [judge(who, mlflow_database, root) for _ in range(3)]
    assert outcomes[0].promoted
    assert outcomes.count(outcomes[0]) == 3
    log = Registry(mlflow_database).promotion_log("mini")
    assert log is not None
    assert [entry.version for entry in log.entries()] == [1, 2]
    assert len(connect(mlflow_database).search_model_versions("name='mini'")) == 2


def test_killed_after_the_log_entry(mlflow_database: str, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    who = candidate(root, "one")
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("lookalike.registry.promotion.project", die)
        with pytest.raises(KeyboardInterrupt):
            judge(who, mlflow_database, root)
    assert connect(mlflow_database).get_registered_model("mini").aliases == {}
    assert resolve("models:/mini@champion", mlflow_database).version == 1  # a reader repairs the alias
    assert str(connect(mlflow_database).get_registered_model("mini").aliases["champion"]) == "1"
    assert judge(who, mlflow_database, root).promoted


def test_an_alias_that_was_moved_by_hand_is_repaired(mlflow_database: str, root: str) -> None:
    judge(candidate(root, "one"), mlflow_database, root)
    judge(candidate(root, "two", loss_gap=0.0), mlflow_database, root)
    connect(mlflow_database).set_registered_model_alias("mini", "champion", "2")
    assert resolve("models:/mini@champion", mlflow_database).version == 1
    assert str(connect(mlflow_database).get_registered_model("mini").aliases["champion"]) == "1"


def test_shuffled_scores_are_refused_and_the_champion_stays(mlflow_database: str, root: str) -> None:
    made = bundle(root, "one")
    good = Candidate("mini", made.uri, scored(root, "right", made))
    probe = Candidate("mini", made.uri, scored(root, "shuffled", made, conditions="shuffled", loss_gap=0.0))
    assert not judge(probe, mlflow_database, root).promoted
    assert judge(good, mlflow_database, root).promoted
    refused = judge(probe, mlflow_database, root)  # the champion's own bundle
    assert [check.name for check in refused.checks if not check.passed] == ["conditions", "loss_gap.low"]
    champion = resolve("models:/mini@champion", mlflow_database)
    assert (champion.version, champion.scores_uri) == (1, f"{root}/right/scores.json")


def test_concurrent_promotion_is_judged_against_the_other(
    mlflow_server: str, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [candidate(s3_uri, f"c{loss}", model="race", loss_right=loss) for loss in (0.4, 0.7)]
    Registry(mlflow_server).ensure_model("race", f"{s3_uri}/log")
    meet = threading.Barrier(2)
    decide_alone = {"left": 2}

    def wait_once(*arguments: object) -> object:
        if decide_alone["left"] > 0:  # both have judged before either has written
            decide_alone["left"] -= 1
            decision = decide(*arguments)  # type: ignore[arg-type]
            meet.wait(timeout=30)
            return decision
        return decide(*arguments)  # type: ignore[arg-type]

    from lookalike.evaluation.gate import decide

    monkeypatch.setattr("lookalike.registry.promotion.decide", wait_once)
    outcomes: dict[int, Outcome] = {}

    def run(index: int) -> None:
        outcomes[index] = judge(both[index], mlflow_server, s3_uri)

    threads = [threading.Thread(target=run, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = Registry(mlflow_server).promotion_log("race")
    assert log is not None
    numbers = [entry.number for entry in log.entries()]
    assert numbers == list(range(1, len(numbers) + 1))
    # The better one ends as champion, whoever wrote first; the worse one was promoted only if it came first.
    assert resolve("models:/race@champion", mlflow_server).version == outcomes[0].version
    assert outcomes[0].promoted
    assert outcomes[1].promoted is (log.entries()[0].version == outcomes[1].version)


def test_customers_models_are_separate(mlflow_database: str, root: str) -> None:
    base = bundle(root, "base")
    for customer, loss in (("acme", 0.5), ("zeta", 0.9)):
        home = f"{root}/customers/{customer}"
        made = bundle(home, "dog/run", base)
        scores = scored(home, "dog/scores", made, loss_right=loss)
        name = personal_model_name(customer, "dog")
        outcome = judge(Candidate(name, made.uri, scores), mlflow_database, home)
        assert (outcome.version, outcome.promoted, outcome.champion_before) == (1, True, None)
        reference = resolve(f"models:/{name}@champion", mlflow_database)
        assert (reference.bundle_sha256, reference.parent) == (made.sha256, base.sha256)


def test_a_bundle_that_changed_after_it_was_registered_is_refused(mlflow_database: str, root: str) -> None:
    judge(candidate(root, "one"), mlflow_database, root)
    store = open_store(f"{root}/one/bundle")
    manifest = json.loads(store.read("bundle.json"))
    manifest["components"]["transformer/model.safetensors"] = "0" * 64
    store.write("bundle.json", json.dumps(manifest).encode())
    with pytest.raises(InputError, match="not the one that was registered"):
        resolve("models:/mini@champion", mlflow_database)


def test_bad_input_is_named(mlflow_database: str, root: str) -> None:
    one, two = bundle(root, "one"), bundle(root, "two")
    with pytest.raises(InputError, match="belong to another bundle"):
        judge(Candidate("mini", one.uri, scored(root, "x", two)), mlflow_database, root)
    with pytest.raises(InputError, match="no such object"):
        judge(Candidate("mini", one.uri, f"{root}/nothing"), mlflow_database, root)
    with pytest.raises(InputError, match="not a bundle"):
        judge(Candidate("mini", f"{root}/nothing", f"{root}/x"), mlflow_database, root)
    with pytest.raises(ConfigError, match="model name"):
        judge(Candidate("../mini", one.uri, f"{root}/x"), mlflow_database, root)
    for name in ("models:/mini", "models:/a/b/c", "models:/mini@", "models:/../x@champion"):
        with pytest.raises(ConfigError):
            resolve(name, mlflow_database)
    with pytest.raises(InputError, match="no such object"):
        resolve(f"{root}/nothing")
    assert resolve(one.uri).bundle_sha256 == one.sha256


def test_a_file_bundle_registers_on_a_server(mlflow_server: str, root: str) -> None:
    outcome = judge(candidate(root, "one", model="on-a-server"), mlflow_server, root)
    assert outcome.promoted
    assert resolve("models:/on-a-server@champion", mlflow_server).bundle_uri == f"{root}/one/bundle"


def test_a_user_without_a_default_permission_promotes_a_new_model(
    mlflow_server: str, mlflow_user: Callable[..., None], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mini-{uuid.uuid4().hex[:8]}"
    users = [f"{name}-{number}" for number in (1, 2)]
    for user in users:
        mlflow_user(user, "a long password", admin=False)

    def sign_in(user: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long password")

    sign_in(users[0])
    mine = candidate(root, "one", name)
    assert judge(mine, mlflow_server, root).promoted
    assert resolve(f"models:/{name}@champion", mlflow_server).version == 1
    sign_in(users[1])
    for ask in (
        lambda: judge(mine, mlflow_server, root),
        lambda: resolve(f"models:/{name}@champion", mlflow_server),
        lambda: resolve(f"models:/{name}/1", mlflow_server),
    ):
        with pytest.raises(RefusedError, match=f"read the registered model {name}.*permission READ on {name}"):
            ask()
