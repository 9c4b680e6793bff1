"""Many requests in one file: batches of several customers, failures of their own, a resume after a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.bundles.build import materialise
from lookalike.config import parse
from lookalike.errors import InputError, UnreachableError
from lookalike.models.presets import LoraConfig, load_preset
from lookalike.registry.lineage import Use, made_below
from pipelines.actors import ActorConfig
from pipelines.generate import GenerateConfig, generate, generate_many
from tests.conftest import REPO, job_environment
from tests.personal import personal_bundle

HERE = ActorConfig(count=0)
CUSTOMERS = ("acme", "zoe", "evil")
Line = dict[str, Any] | bytes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and below ``customers/NAME`` a personal bundle of another rank and two photos for each customer."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("place")
    base = materialise(load_preset("mini"), root / "base")
    random = np.random.default_rng(0)
    for number, name in enumerate(CUSTOMERS):
        home, lora = root / "customers" / name, LoraConfig(rank=4 << number)
        personal_bundle(base, home / "mug" / "bundle", number, lora=lora, owner=f"{name}--mug")
        (home / "photos").mkdir()
        for view in range(2):
            coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((64, 80), 0).save(home / "photos" / f"{view}.png")
    return root


@pytest.fixture
def asked(place: Path, tmp_path: Path) -> Callable[..., GenerateConfig]:
    """``asked(line, …, steps=2)``: the command for a file of these lines."""

    def write(*lines: Line, **settings: Any) -> GenerateConfig:
        file = tmp_path / "requests.jsonl"
        file.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
        given = {"steps": 1, "actors": HERE, "batch_size": 4} | settings
        return GenerateConfig(requests=str(file), out=str(tmp_path / "out"), **given)

    return write


def line_of(place: Path, name: str, customer: str, **settings: Any) -> dict[str, Any]:
    home = place / "customers" / customer
    usual = {"model": str(home / "mug" / "bundle"), "reference": str(home / "photos"), "prompt": "a mug on sand"}
    return {"id": name, **usual, **settings}


def results_of(config: GenerateConfig) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, (Path(config.out) / "results.jsonl").read_text().splitlines())
    return {row["id"] or f"line {row['line']}": row for row in rows}


def images_below(folder: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path), int) for path in folder.rglob("images/*.png")
    }


def test_each_request_gets_what_its_own_command_writes(
    place: Path, asked: Callable[..., GenerateConfig], tmp_path: Path
) -> None:
    lines = [
        line_of(place, "acme-1", "acme", num_images=2, seed=5),
        line_of(place, "zoe-1", "zoe", prompt=["a mug", "a red mug in the snow"]),
        line_of(place, "small", "zoe", height=32, width=40, guidance_scale=1.0),
        line_of(place, "base", "zoe", model=str(place / "base")),
    ]
    config = asked(*lines, steps=2)
    done = generate_many(config)
    assert (done["requests"], done["generated"], done["failed"]) == (4, 4, 0)
    assert {name: row["state"] for name, row in results_of(config).items()} == dict.fromkeys(
        ("acme-1", "zoe-1", "small", "base"), "generated"
    )
    out = Path(config.out)
    for line in lines:
        own = {
            key: [value] if key in ("prompt", "reference") and isinstance(value, str) else value
            for key, value in line.items()
            if key != "id"
        }
        alone = GenerateConfig(**{"out": str(tmp_path / "alone" / line["id"]), "steps": 2, "actors": HERE, **own})
        result = generate(alone)
        assert [image["file"] for image in result["images"]] == [
            image["file"] for image in json.loads((out / line["id"] / "generations.json").read_text())["images"]
        ]
        mine = images_below(out / line["id"])
        for file, expected in images_below(Path(alone.out)).items():
            assert np.abs(mine[file] - expected).max() <= 1
        assert generate(dataclasses.replace(alone, out=str(out / line["id"])))["images"] == result["images"]
    with Image.open(out / "acme-1" / "images" / "0000-6.png") as image:
        assert image.text["model"].endswith("customers/acme/mug/bundle")  # type: ignore[attr-defined]
        assert (image.text["prompt"], image.text["seed"]) == ("a mug on sand", "6")  # type: ignore[attr-defined]
    uses = {Path(use.uri).name: use for use in made_below([str(out)]) if isinstance(use, Use)}
    assert {name: (use.kind, use.finished) for name, use in uses.items()} == dict.fromkeys(
        ("acme-1", "zoe-1", "small", "base"), ("generation", True)
    )
    assert len({use.bundles for use in uses.values()}) == 3
    again = generate_many(config)
    assert (again["generated"], again["done before"]) == (0, 4)


def test_a_request_that_fails_fails_alone_with_its_reason(
    place: Path, asked: Callable[..., GenerateConfig], tmp_path: Path
) -> None:
    nobody = personal_bundle(place / "base", tmp_path / "nobody", 5)
    manifest = json.loads((nobody / "bundle.json").read_text())
    manifest["base"]["sha256"] = "0" * 64
    (nobody / "bundle.json").write_text(json.dumps(manifest))
    damaged = personal_bundle(place / "base", tmp_path / "damaged", 6)
    weights = damaged / "transformer_lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines: list[Line] = [
        line_of(place, "good", "acme"),
        line_of(place, "no-photo", "acme", reference=str(tmp_path / "none.png")),
        line_of(place, "broken-photo", "acme", reference=str(tmp_path / "broken.png")),
        line_of(place, "no-model", "acme", model=str(tmp_path)),
        line_of(place, "other-customer", "acme", reference=str(place / "customers" / "evil" / "photos")),
        line_of(place, "no-base", "acme", model=str(nobody)),
        line_of(place, "damaged", "acme", model=str(damaged)),
        line_of(place, "bad-size", "acme", height=33),
        line_of(place, "no-steps", "acme", steps=0),
        line_of(place, "unknown-setting", "acme", out="/tmp/elsewhere"),
        line_of(place, "null", "acme", prompt=None),
        line_of(place, "twice", "acme"),
        line_of(place, "twice", "zoe"),
        line_of(place, "../evil", "acme"),
        {"model": "m"},
        b"{not json",
        b"[1]",
        b"",
        b'{"id": "long", "prompt": "' + b"a" * (1 << 20) + b'"}',
        line_of(place, "good-too", "zoe", seed=1),
    ]  # fmt: skip
    config = asked(*lines, batch_size=8)
    done = generate_many(config)
    rows = results_of(config)
    good = {name for name, row in rows.items() if row["state"] == "generated"}
    assert good == {"good", "good-too"}
    assert (done["requests"], done["generated"], done["failed"]) == (19, 2, 17)
    expected = {
        "no-photo": "none.png", "broken-photo": "broken.png", "no-model": "bundle.json",
        "other-customer": "belongs to the customer 'evil'", "no-base": "needs the base 000000000000",
        "damaged": "has changed", "bad-size": "64x33 pixels is not supported", "no-steps": "steps is below 1",
        "unknown-setting": "no such setting", "null": "prompt is not a list", "twice": "2 requests have this id",
        "line 14": "not a valid id", "line 15": "lacks 'id'", "line 16": "not valid JSON", "line 17": "not an object",
        "line 19": "more than 1048576 bytes",
    }  # fmt: skip
    for name, text in expected.items():
        assert text in f"{rows[name]['what']} {rows[name]['value']}", rows[name]
        assert rows[name]["fix"]
    assert sorted(path.name for path in Path(config.out).iterdir() if (path / "images").exists()) == [
        "good",
        "good-too",
    ]
    assert not (tmp_path / "evil").exists()
    repaired = asked(
        line_of(place, "good", "acme"),
        line_of(place, "no-photo", "acme"),
        line_of(place, "good-too", "zoe", seed=1, prompt="another"),  # not what its folder holds
    )
    generate_many(repaired)
    rows = results_of(repaired)
    assert [rows[name]["state"] for name in ("good", "no-photo", "good-too")] == ["done before", "generated", "failed"]
    assert "another run's result, with another inputs" in rows["good-too"]["what"]


def test_a_batch_that_fails_is_repeated_by_request(
    place: Path, asked: Callable[..., GenerateConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch too large for the memory, and a request whose images fail in any batch."""
    from lookalike.diffusion.stacked import StackedPipeline

    whole = StackedPipeline.__call__

    def limited(self: StackedPipeline, images: Any, **settings: Any) -> Any:
        if len(images) > 1 or images[0].prompt == "poison":
            raise MemoryError("out of memory")
        return whole(self, images, **settings)

    monkeypatch.setattr(StackedPipeline, "__call__", limited)
    lines = [
        line_of(place, name, "acme", prompt=prompt) for name, prompt in (("a", "a mug"), ("b", "poison"), ("c", "mug"))
    ]
    config = asked(*lines)
    assert generate_many(config)["failed"] == 1
    assert {name: row["state"] for name, row in results_of(config).items()} == {
        "a": "generated", "b": "failed", "c": "generated",
    }  # fmt: skip
    assert "out of memory" in results_of(config)["b"]["what"]


def test_a_store_that_does_not_answer_ends_the_run_and_no_request(
    place: Path, asked: Callable[..., GenerateConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.actors._PAUSE_S", 0.01)
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    config = asked(line_of(place, "a", "acme"), line_of(place, "b", "acme", model="s3://bucket/bundle"))
    with pytest.raises(UnreachableError):
        generate_many(config)
    assert not (Path(config.out) / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("data", "message"), [(None, "requests.jsonl"), (b"\n \n", "no request"), (b"x" * (2 << 20), "max_requests_mib")]
)
def test_a_file_without_requests_is_an_error(
    asked: Callable[..., GenerateConfig], data: bytes | None, message: str
) -> None:
    config = asked(max_requests_mib=1)
    assert config.requests is not None
    Path(config.requests).unlink() if data is None else Path(config.requests).write_bytes(data)
    with pytest.raises(InputError, match=message):
        generate_many(config)


@pytest.mark.usefixtures("ray_local")
def test_a_killed_run_resumes_also_with_an_actor(place: Path, asked: Callable[..., GenerateConfig]) -> None:
    lines = [line_of(place, f"r{number}", CUSTOMERS[number % 2], seed=number) for number in range(8)]
    config = asked(*lines, batch_size=2)
    out = Path(config.out)
    arguments = ["--requests", str(config.requests), "--out", config.out, "--steps", "1", "--batch-size", "2"]
    job = subprocess.Popen(
        [sys.executable, str(REPO / "jobs" / "generate.py"), *arguments, "--actors.count", "0"],
        env=job_environment({}), cwd=REPO, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while job.poll() is None and len(list(out.rglob("images/*.png"))) < 3:
            time.sleep(0.02)
        os.kill(job.pid, signal.SIGKILL)
    finally:
        job.kill()
        job.wait()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("images/*.png")}
    assert 3 <= len(before) < 8
    bad = line_of(place, "bad", "acme", reference="/none.png")
    done = generate_many(asked(*lines, bad, batch_size=2, actors=ActorConfig(count=1)))
    assert done["generated"] + done["done before"] == 8
    assert {name for name, row in results_of(config).items() if row["state"] == "failed"} == {"bad"}
    assert done["done before"] >= 1
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert len(list(out.rglob("images/*.png"))) == 8


def test_the_command_line_takes_requests_without_a_model() -> None:
    config = parse(GenerateConfig, ["--requests", "r.jsonl", "--out", "o", "--adapters-mib", "64"])
    assert (config.requests, config.model, config.adapters_mib) == ("r.jsonl", "", 64)
