"""Evaluations of a curated data set with DreamBench's prompts in place of its captions."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lookalike.errors import ConfigError
from lookalike.evaluation.metrics import embedders
from lookalike.recent import Recent
from lookalike.storage import open_store
from pipelines.actors import ActorConfig
from pipelines.evaluate import EvaluateConfig, evaluate, models, run, worker
from pipelines.evaluate.suite_source import read_suite
from pipelines.finetune import FinetuneConfig
from pipelines.finetune.parts import Datasets, evaluation_of
from pipelines.preference.cases import Shown, read_evaluation, shown_cases
from tests.judged import write_dataset


@pytest.fixture
def config(bundle_dir: Path, tmp_path: Path) -> EvaluateConfig:
    """An evaluation of 8 prompts for one of four subjects."""
    return EvaluateConfig(
        bundle=str(bundle_dir),
        suite=str(write_dataset(tmp_path / "dataset")),
        out=str(tmp_path / "out"),
        max_samples=4,
        subjects=1,
        prompts_per_subject=8,
        prompts="dreambench",
        stand_ins=1,
        stages=["preset"],
        steps=1,
        metrics={"copying": False},
        actors=ActorConfig(count=0),
    )


def rows_of(config: EvaluateConfig) -> list[dict[str, Any]]:
    return list(pq.read_table(Path(config.out) / "measurements.parquet").to_pylist())


def test_images_have_prompts_of_every_kind_and_losses_the_captions(
    config: EvaluateConfig, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = embedders.load_embedder
    monkeypatch.setattr(embedders, "load_embedder", lambda name, device: loaded.append(name) or load(name, device))
    monkeypatch.setattr(embedders, "_LOADED", Recent(2))
    config = dataclasses.replace(config, clip=str(clip_folder), images_per_prompt=2)
    scores = evaluate(config)
    kinds = {name: scores.metrics[f"clip_t_{name}"].n for name in ("place", "recolouring", "style")}
    assert kinds == {"place": 12, "recolouring": 2, "style": 2}
    assert "variety_background" in scores.metrics
    assert len(loaded) == 1, "for the calibration, the actors of images and those of sets, which are in one process"
    suite = read_suite(scores)
    prompts = {sample.sample_id: sample.prompt for sample in suite.pool}
    cases = {row["case"] for row in rows_of(config) if row["metric"] == "clip_t"}
    assert Counter(prompts[case.partition("@")[0]] for case in cases)["a thing in the jungle"] == 2
    assert all(" thing" in prompts[case.partition("@")[0]] for case in cases)

    evaluation = read_evaluation("a", config.out)
    shown = [each for each in shown_cases(evaluation, cases) if isinstance(each, Shown)]
    assert len(shown) == len(cases), "a page for people shows images of several seeds too"

    plain = dataclasses.replace(config, clip=None, prompts=None, out=str(tmp_path / "plain"), prompts_per_subject=1)
    evaluate(plain)
    losses = [[row for row in rows_of(each) if "loss" in row["metric"]] for each in (config, plain)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 24


def test_rows_by_a_judge_that_moved_are_measured_again(config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub got another revision between two attempts: no evaluation has rows of both, and images are kept."""
    keep, measured, generated = worker.write_rows, [], []

    def kill(*arguments: Any) -> None:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(arguments[2])
        keep(*arguments)

    monkeypatch.setattr(worker, "write_rows", kill)
    monkeypatch.setattr(worker, "write_image", lambda *given: generated.append(given[2]) or write(*given))
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert measured == [0, 1, 2]
    monkeypatch.setattr(worker, "write_rows", lambda *given: measured.append(given[2]) or keep(*given))
    judge = run.judge_of
    monkeypatch.setattr(run, "judge_of", lambda *given: moved(*judge(*given)))
    scores = evaluate(config)
    assert measured[3:6] == [0, 1, 2]
    assert scores.protocols["identity"]["model"] == "another revision"
    assert len(generated) == len(set(generated)) == 8, "no image is generated twice"


write = worker.write_image


def moved(judge: Any, protocols: dict[str, dict[str, Any]]) -> Any:
    return judge, {**protocols, "identity": {**protocols["identity"], "model": "another revision"}}


def test_models_of_the_judge_are_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def revision(name: str, kind: str = "model") -> str:
        asked.append(name)
        return f"{name.partition('@')[0]}@{'c' * 40}"

    monkeypatch.setattr("lookalike.annotators.hub.model_revision", revision)
    metrics = {"safety": {"model": "org/nsfw", "unsafe": ["nsfw"]}, "aesthetic": {"model": str(tmp_path)}}
    config = EvaluateConfig("b", "s", "o", clip="org/clip", dino=str(tmp_path), metrics={**metrics, "copying": False})
    pinned = models.with_pinned_models(config)
    commit = "@" + "c" * 40
    assert (pinned.clip, pinned.dino, pinned.embedder) == ("org/clip" + commit, config.dino, config.embedder)
    assert pinned.metrics["safety"] == {"model": "org/nsfw" + commit, "unsafe": ["nsfw"]}
    assert pinned.metrics["aesthetic"] == metrics["aesthetic"]
    assert models.with_pinned_models(dataclasses.replace(config, embedder="org/dino")).embedder == "org/dino" + commit
    assert sorted(asked) == ["org/clip", "org/clip", "org/dino", "org/nsfw", "org/nsfw"]


def test_a_folder_with_prompts_of_its_own_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    folder = tmp_path / "folder" / "mug"
    folder.mkdir(parents=True)
    photo = next(Path(config.suite).rglob("*.tar")).read_bytes()
    (folder / "0.jpg").write_bytes(photo)
    (folder.parent / "suite.yaml").write_text("prompts: [{prompt: a mug, references: [mug/0.jpg]}]")
    with pytest.raises(ConfigError, match="has prompts of its own"):
        evaluate(dataclasses.replace(config, suite=str(folder.parent)))


def test_a_finetune_is_judged_by_captions_unless_it_names_other_prompts(tmp_path: Path) -> None:
    def made(held_out: int, **evaluation: Any) -> EvaluateConfig:
        config = FinetuneConfig("acme", "mug", str(tmp_path), str(tmp_path), evaluation=evaluation)
        data = Datasets("file:///train", "file:///suite", "validation" if held_out else "train", held_out)
        return evaluation_of(config, open_store(str(tmp_path)), data, "bundle", "base")

    assert made(2).prompts is None
    assert made(2, prompts="dreambench").prompts == "dreambench"
    assert made(0).prompts is None
