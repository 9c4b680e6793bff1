"""jobs/trace.py on snapshots, the records of runs and generations, and a real MLflow: links both ways, also missing
ones."""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.trace import main_image, main_model
from lookalike import config as configs
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.scores import Source
from lookalike.models.presets import LoraConfig
from lookalike.storage import open_store, read_manifest
from lookalike.storage.claim import run_once, write_result
from lookalike.training.config import TrainConfig
from pipelines.entry import EXIT_ERROR, run_subcommand
from pipelines.generate import GenerateConfig
from pipelines.promote import PromoteConfig, promote
from pipelines.trace import TraceImageConfig, TraceModelConfig, trace_image, trace_model
from tests.integration.test_promotion import bundle, scored
from tests.unit.curate.test_snapshot_tables import drawn_world
from tests.versions import Rows, publish

Row = dict[str, Any]
REFERENCE = b"a reference photo"


@dataclass
class Made:
    """Two snapshots; a base trained on the second; a personal model on the base; its images."""

    root: Path
    tracking: str
    photos: Rows
    triplets: Rows

    @property
    def store(self) -> list[str]:
        return [str(self.root)]

    def model(self, model: str, **settings: Any) -> list[Row]:
        return list(trace_model(TraceModelConfig(model, tracking=self.tracking, **settings)))

    def image(self, image: str, **settings: Any) -> list[Row]:
        return list(trace_image(TraceImageConfig(image, **({"tracking": self.tracking} | settings))))

    def used(self, split: str) -> list[str]:
        """Hashes of the photos that triplets of a split use, in order."""
        rows = [row for row in self.triplets if row["split"] == split]
        return sorted({sha for row in rows for sha in (row["target_image"], *row["reference_images"])})


def _once(config: Any, where: Path, key: str, content: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
    """Claim a prefix and write a result as a job does; None: the job was killed."""
    store = open_store(str(where))

    def work(run: str) -> None:
        if result is not None:
            write_result(store, key, result, run)

    run_once(store, key, config, content=content, earlier=lambda run: None, work=work)


def _train(root: Path, name: str, of: Source | None, base: Source | None, steps: int = 10) -> None:
    dataset = open_store(str(root / "dataset"))
    snapshot = {"uri": dataset.uri, "version": 2, "sha256": configs.fingerprint(read_manifest(dataset, 2))}
    config = TrainConfig(
        dataset=dataset.uri,
        run=str(root / name),
        base=base.uri if base else None,
        adapter=LoraConfig() if base else None,
    )
    content: dict[str, Any] = {"snapshot": snapshot, "order": 1} | ({"base_sha256": base.sha256} if base else {})
    made = of and {"bundle_uri": of.uri, "bundle_sha256": of.sha256, "steps": steps, "stages": [], "tracking_run": "t"}
    _once(config, root / name, "result.json", content, made)


def _generate(root: Path, name: str, of: Source, images: int, *, finished: bool = True) -> None:
    inputs = {"bundle": of.sha256, "prompts": ["x"], "references": [configs.fingerprint(REFERENCE.hex())]}
    config = GenerateConfig(of.uri, str(root / name), prompt=["x"], reference=["photo"])
    _once(config, root / name, "generations.json", {"inputs": inputs}, {"images": []} if finished else None)
    for number in range(images):
        open_store(str(root / name)).write(f"images/{number}.png", b"png")


@pytest.fixture
def made(tmp_path: Path, mlflow_database: str) -> Made:
    root = tmp_path / "store"
    images, rows = drawn_world(1, 12)
    dataset = open_store(str(root / "dataset"))
    publish(dataset, 1, images[:5], [], format_1=False)
    publish(dataset, 2, images, rows, format_1=False)
    base = bundle(str(root), "base")
    _train(root, "base", base, None)
    acme = root / "customers" / "acme" / "duck"
    personal = bundle(str(acme), "run", base, "acme--duck")
    _train(acme.parents[2], "customers/acme/duck/run", personal, base)
    _train(root, "killed", None, base)
    for model, of, where in (("mini", base, root / "base"), ("acme--duck", personal, acme)):
        scored(str(where), "scores", of)
        promote(PromoteConfig(model, f"{where}/scores", f"{where}/promotion", tracking=mlflow_database))
    _generate(root, "images", personal, 3)
    _generate(root, "killed-images", base, 1, finished=False)
    _generate(root, "others", bundle(str(root), "other"), 2)
    return Made(root, mlflow_database, images, rows)


def _rows(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def test_a_model_down_to_the_pretrained_weights(made: Made) -> None:
    rows = made.model("models:/acme--duck@champion", photos=True)
    assert not [row for row in rows if "reason" in row]
    kinds = [(row["kind"], row["depth"]) for row in rows if row["kind"] not in ("raw_shard", "photo", "pretrained")]
    assert kinds == [
        ("version", 0), ("scores", 0), ("decision", 0), ("promotion", 0),
        ("bundle", 0), ("run", 0), ("snapshot", 0), ("photos", 0),
        ("bundle", 1), ("run", 1), ("snapshot", 1), ("photos", 1),
    ]  # fmt: skip
    assert _rows(rows, "version")[0]["name"] == "models:/acme--duck/1"
    personal, base = _rows(rows, "run")
    assert personal["uri"].endswith("customers/acme/duck/run")
    assert (base["steps"], base["samples"]) == (10, 10 * base["config"]["batch_size"])
    snapshot = _rows(rows, "snapshot")[1]
    assert (snapshot["version"], snapshot["raw"]) == (2, "file:///raw")
    photos = [row for row in _rows(rows, "photo") if row["depth"] == 1]
    assert sorted(row["sha256"] for row in photos) == made.used("train")
    assert _rows(rows, "photos")[1]["photos"] == len(photos)
    shards = [row for row in _rows(rows, "raw_shard") if row["depth"] == 1]
    assert sum(row["photos"] for row in shards) == len(photos)
    assert {row["uri"] for row in shards} == {row["raw"] for row in photos}
    sources = {row["component"]: row["source"] for row in _rows(rows, "pretrained")}
    assert sources["mllm"] == "package:mini/mllm"
    assert {row["depth"] for row in _rows(rows, "pretrained")} == {2}


@pytest.mark.usefixtures("ray_local")
def test_photos_of_a_large_snapshot_are_counted_by_tasks(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    few = made.model(f"{made.root}/base/bundle", photos=True)
    monkeypatch.setattr("pipelines.curate.snapshot_tables._ROWS_OF_A_UNIT", 10)
    monkeypatch.setattr("pipelines.trace.photos.FEW", 0)
    assert made.model(f"{made.root}/base/bundle", photos=True) == few
    assert len(_rows(few, "photo")) == len(made.used("train")) > 10


def test_a_bundle_without_a_name_and_without_mlflow(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = list(trace_model(TraceModelConfig(f"{made.root}/base/bundle")))
    assert [row["kind"] for row in rows[:4]] == ["bundle", "run", "snapshot", "photos"]


def test_what_was_moved_is_found_by_its_hash(made: Made) -> None:
    before = made.model("models:/acme--duck@champion")
    for name in ("base", "dataset"):
        (made.root / name).rename(made.root / f"moved-{name}")
    missing = [row for row in made.model("models:/acme--duck@champion") if "reason" in row]
    reasons = " ".join(row["reason"] for row in missing)
    assert "no bundle with this hash is at its place; name the place where it lies now with --store" in reasons
    assert "version 2 is not at" in reasons
    found = made.model("models:/acme--duck@champion", store=made.store)
    assert not [row for row in found if "reason" in row]
    assert [row["kind"] for row in found] == [row["kind"] for row in before]
    assert _rows(found, "bundle")[1]["uri"].endswith("moved-base/bundle")
    assert _rows(found, "bundle")[1]["recorded_uri"].endswith("/base/bundle")


def test_bundle_that_was_copied_out_of_its_run(made: Made) -> None:
    shutil.copytree(made.root / "base" / "bundle", copied := made.root.parent / "copied")
    assert "no training run of this bundle is known" in _rows(made.model(str(copied)), "run")[0]["reason"]
    assert _rows(made.model(str(copied), store=made.store), "run")[0]["uri"].endswith("/base")


def test_missing_links_are_rows_with_a_reason(made: Made) -> None:
    (made.root / "base" / "scores" / "scores.json").unlink()
    (made.root / "base" / "promotion" / "decision.json").unlink()
    (made.root / "base" / "run.json").unlink()
    entry = next((made.root / "base" / "promotion-log" / "mini").iterdir())
    rows = made.model("models:/mini/1")
    reasons = {row["kind"]: row["reason"] for row in rows if "reason" in row}
    assert set(reasons) == {"scores", "decision", "run"}
    assert reasons["scores"] == "there is no scores.json at its place"
    entry.write_text("{}")
    assert "is damaged" in _rows(made.model("models:/mini/1"), "promotion")[0]["reason"]


def test_snapshot_that_was_replaced_is_named(made: Made) -> None:
    manifest = made.root / "dataset" / "v0002" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "code_version": "2"}))
    assert "is another one than the run read" in _rows(made.model("models:/mini/1"), "snapshot")[0]["reason"]


def test_no_such_model_is_an_error(made: Made) -> None:
    for model in ("models:/mini/9", "models:/none@champion", f"{made.root}/nothing"):
        with pytest.raises(InputError):
            made.model(model)


def test_a_photo_to_its_models_and_their_images(made: Made) -> None:
    sha256 = made.used("train")[0]
    rows = made.image(sha256[:20], store=made.store)
    assert not [row for row in rows if "reason" in row]
    assert [(row["version"], row["images"][0]["sha256"]) for row in _rows(rows, "snapshot")] == [(2, sha256)]
    learned = {row["uri"].rpartition("store/")[2]: row["learned"] for row in _rows(rows, "run")}
    assert learned == {"base": "yes", "customers/acme/duck/run": "yes", "killed": "yes"}
    assert {(row["name"], row["champion"]) for row in _rows(rows, "version")} == {
        ("models:/mini/1", True),
        ("models:/acme--duck/1", True),
    }
    outputs = {row["uri"].rpartition("/")[2]: (row["images"], row["finished"]) for row in _rows(rows, "generation")}
    assert outputs == {"images": (3, True), "killed-images": (1, False)}
    of_data = made.image(sha256, dataset=[f"{made.root}/dataset"])
    assert [row["kind"] for row in of_data if row["kind"] != "snapshot"] == ["image"]


def test_a_model_learns_by_its_base(made: Made) -> None:
    """The personal run reads a snapshot of its own; the base's photos reach it through its base alone."""
    run = made.root / "customers" / "acme" / "duck" / "run"
    for name in ("run.json", "result.json"):
        (run / name).unlink()
    images, rows = drawn_world(3, 4)
    publish(open_store(str(run / "data")), 2, images, rows, format_1=False)
    manifest = configs.fingerprint(read_manifest(open_store(str(run / "data")), 2))
    base = Source(f"{made.root}/base/bundle", _rows(made.model("models:/mini/1"), "bundle")[0]["sha256"])
    sha256 = _rows(made.model("models:/acme--duck/1"), "bundle")[0]["sha256"]
    config = TrainConfig(dataset=str(run / "data"), run=str(run), base=base.uri, adapter=LoraConfig())
    snapshot = {"uri": str(run / "data"), "version": 2, "sha256": manifest}
    content = {"snapshot": snapshot, "order": 1, "base_sha256": base.sha256}
    _once(config, run, "result.json", content, {"bundle_sha256": sha256, "steps": 1})
    found = made.image(made.used("train")[0], store=made.store)
    learned = {row["uri"].rpartition("store/")[2]: row["learned"] for row in _rows(found, "run")}
    assert learned["customers/acme/duck/run"] == "by its base"
    assert {row["name"]: row["learned"] for row in _rows(found, "version")}["models:/acme--duck/1"] == "by its base"


def test_held_out_and_dropped_photos_taught_nothing(made: Made) -> None:
    held_out = next(sha256 for sha256 in made.used("validation") if sha256 not in made.used("train"))
    dropped = next(row["sha256"] for row in made.photos if row["drop_reason"])
    for sha256 in (held_out, dropped):
        rows = made.image(sha256, store=made.store)
        assert {row["learned"] for row in _rows(rows, "run")} == {"no"}
        assert not _rows(rows, "version") + _rows(rows, "generation")


def test_a_file_is_found_by_its_bytes_and_as_a_reference(made: Made, tmp_path: Path) -> None:
    file = tmp_path / "duck.jpg"
    file.write_bytes(REFERENCE)
    rows = made.image(str(file), store=made.store)
    assert rows[0]["sha256"] == hashlib.sha256(REFERENCE).hexdigest()
    assert {row["uri"].rpartition("/")[2] for row in _rows(rows, "generation")} == {"images", "killed-images", "others"}
    assert all(row["as_reference"] for row in _rows(rows, "generation"))


def test_what_cannot_be_searched_is_a_row_with_a_reason(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (made.root / "broken").mkdir()
    (made.root / "broken" / "run.json").write_text("{")
    sha256 = made.used("train")[0]
    rows = made.image(sha256, store=made.store, dataset=[f"{made.root}/none"], tracking=None)
    reasons = {row["kind"]: row["reason"] for row in rows if "reason" in row}
    assert set(reasons) == {"run", "snapshot", "version"}
    assert "the data set has no complete snapshot" in reasons["snapshot"]
    assert "the tracking URI is missing" in reasons["version"]
    (made.root / "dataset").rename(moved := made.root.parent / "moved")
    rows = made.image(sha256, store=made.store)
    assert "name its place now with --dataset" in _rows(rows, "snapshot")[0]["reason"]
    assert not _rows(rows, "version")
    rows = made.image(sha256, store=made.store, dataset=[str(moved)])  # found by the fingerprint of its manifest
    assert len(_rows(rows, "version")) == 2


def test_bad_input_is_named(made: Made) -> None:
    with pytest.raises(ConfigError, match="neither a content hash nor a file"):
        made.image(f"{made.root}/nothing.jpg", store=made.store)
    with pytest.raises(ConfigError, match="no place to search"):
        made.image("0" * 64)
    content = made.photos[0]["sha256"]
    images = [dict(row) for row in made.photos[:2]]
    images[1]["sha256"] = content[:20] + "0" * 44
    publish(open_store(str(made.root / "twins")), 1, images, [], format_1=False)
    with pytest.raises(InputError, match="the hashes of 2 photos begin with these digits"):
        made.image(content[:10], dataset=[f"{made.root}/twins"])


def test_from_the_command_line(made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def job(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trace.py", *arguments, "--tracking", made.tracking])
        return run_subcommand({"model": main_model, "image": main_image}, "x")

    assert job("model", "models:/acme--duck@champion") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("version     models:/acme--duck/1  bundle ")
    assert printed.endswith(", 0 of them missing links\n")
    assert job("model", "models:/mini/1", "--photos", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["kind"] for row in rows} >= {"version", "run", "photo", "raw_shard", "pretrained"}
    assert job("image", made.used("train")[0], "--store", str(made.root)) == 0
    assert "models:/mini/1  learned yes" in capsys.readouterr().out
    assert job("image", "nothing") == EXIT_ERROR
    assert "no place to search" in capsys.readouterr().err
