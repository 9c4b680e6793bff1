"""Sizes of generated images, and requests that are refused before any work; nothing here starts Ray."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lookalike import config as configs
from lookalike.bundles.locate import locate_bundle
from lookalike.errors import ConfigError, ConflictError, InputError
from lookalike.storage import open_store
from pipelines.generate import GenerateConfig, generate
from pipelines.generate.generation import PlannedImage, find_model, read_prompts
from pipelines.generate.worker import GenerationWork, Generator


@pytest.fixture
def request_of(bundle_dir, pictures, tmp_path) -> GenerateConfig:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "mug.png")
    return GenerateConfig(
        model=str(bundle_dir),
        out=str(tmp_path / "out"),
        prompt=["a red mug"],
        reference=[str(tmp_path / "mug.png")],
        steps=1,
    )


@pytest.mark.parametrize(
    ("change", "size"),
    [({}, (64, 64)), ({"height": 32}, (64, 32)), ({"height": 24, "width": 40}, (40, 24))],
)
def test_images_have_the_size_that_is_asked_for(request_of, tmp_path, change: dict[str, Any], size) -> None:
    config = dataclasses.replace(request_of, **change)
    model = find_model(config.model, None, None, None)
    photo = (tmp_path / "mug.png").read_bytes()
    work = GenerationWork(config, model, (photo,), ((PlannedImage("images/0.png", "a red mug", 3),),))
    worker = Generator(work)
    worker(0)
    image = Image.open(io.BytesIO(open_store(config.out).read("images/0.png")))
    assert image.size == size
    expected = worker._pipe("a red mug", [Image.open(tmp_path / "mug.png")], seeds=[3], num_inference_steps=1, **change)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.images[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, r"height is below 1 \(0\)"),
        ({"width": 0}, r"width is below 1 \(0\)"),
        ({"width": -64}, "width is below 1"),
        ({"width": 10**6}, "width is above 16384"),
        ({"steps": 0}, "steps is below 1"),
        ({"num_images": 0}, "num_images is below 1"),
        ({"batch_size": 0}, "batch_size is below 1"),
        ({"seed": -1}, "seed is below 0"),
        ({"seed": 2**64}, "seed is above 4611686018427387904"),
        ({"seed": 2**62 + 1}, "seed is above 4611686018427387904"),
        ({"guidance_scale": float("nan")}, "guidance_scale is not a finite number"),
    ],
)
def test_invalid_generation_settings_are_refused_at_construction(request_of, change, message) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(request_of, **change)


def test_a_size_that_the_model_cannot_make_is_refused_before_any_work(request_of, tmp_path) -> None:
    with pytest.raises(ConfigError, match="70x64 pixels is not supported; use multiples of 8"):
        generate(dataclasses.replace(request_of, width=70))
    assert not (tmp_path / "out").exists()


def test_result_from_before_height_and_width_matches(request_of, tmp_path) -> None:
    store = open_store(request_of.out)
    bundle = locate_bundle(request_of.model)
    values = {name: value for name, value in configs.to_dict(request_of).items() if name not in ("height", "width")}
    inputs = {
        "bundle": bundle.sha256,
        "prompts": request_of.prompt,
        "references": [configs.fingerprint((tmp_path / "mug.png").read_bytes().hex())],
    }
    ignored = ("out", "actors", "batch_size", "tracking")
    identity = {key: value for key, value in {**values, "inputs": inputs}.items() if key not in ignored}
    record = {"config": values, "identity": identity, "fingerprint": configs.fingerprint(identity)}
    store.write("run.json", json.dumps(record).encode())
    images = [{"file": "images/0000-0.png", "prompt": "a red mug", "seed": 0}]
    earlier = {"model": {"name": None}, "references": [], "images": images, "config": values}
    store.write("generations.json", json.dumps(earlier).encode())
    assert generate(request_of) == earlier
    store.write("generations.json", json.dumps({**earlier, "images": []}).encode())
    with pytest.raises(InputError, match="other images"):
        generate(request_of)
    store.write("generations.json", json.dumps(earlier).encode())
    with pytest.raises(ConflictError, match="another height"):
        generate(dataclasses.replace(request_of, height=32))


def test_the_command_line_takes_sizes() -> None:
    required = ["--model", "m", "--out", "o", "--prompt", "p", "--reference", "r"]
    config = configs.parse(GenerateConfig, [*required, "--height", "512", "--width", "768"])
    assert (config.height, config.width) == (512, 768)
    assert Path(configs.parse(GenerateConfig, required).out) == Path("o")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_prompts_of_a_file_are_read_by_its_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    text = "Loïc\u2019s mug 🦆\r\n\r\na mug\u2028on two lines\n"
    (tmp_path / "prompts.txt").write_bytes(text.encode(encoding))
    config = GenerateConfig(model="m", out="o", prompts_file=str(tmp_path / "prompts.txt"), reference=["r"])
    assert read_prompts(config) == ["Loïc\u2019s mug 🦆", "a mug\u2028on two lines"]


@pytest.mark.parametrize("data", ["a mug\nLoïc\u2019s mug".encode("cp1252"), "a mug".encode("utf-16-le"), b"a\0b"])
def test_prompts_in_another_encoding_are_an_error_that_names_the_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(data)
    config = GenerateConfig(model="m", out="o", prompts_file=str(tmp_path / "prompts.txt"), reference=["r"])
    with pytest.raises(InputError, match=r"line [12] (is not UTF-8|holds a NUL)") as refused:
        read_prompts(config)
    assert str(refused.value.value).endswith("prompts.txt")


def test_prompts_file_and_references_have_bounds_that_settings_raise(request_of, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("a mug\n" * 200_000)  # 1.1 MiB
    config = dataclasses.replace(request_of, prompts_file=str(tmp_path / "prompts.txt"), max_prompts_mib=1)
    with pytest.raises(InputError, match="more than the 1 MiB that max_prompts_mib allows"):
        read_prompts(config)
    assert len(read_prompts(dataclasses.replace(config, max_prompts_mib=2))) == 200_001
    (tmp_path / "mug.png").write_bytes((tmp_path / "mug.png").read_bytes() + bytes(1 << 20))
    with pytest.raises(InputError, match=r"more than the 1 MiB that max_reference_mib allows.*raise max_reference_mib"):
        generate(dataclasses.replace(request_of, max_reference_mib=1))
    with pytest.raises(ConfigError, match="max_reference_mib is below 1"):
        dataclasses.replace(request_of, max_reference_mib=0)
