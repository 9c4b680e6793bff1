"""A bundle's control files that are broken: an error that names the file, for every reader of them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import parse_manifest
from lookalike.errors import ConfigError, InputError
from lookalike.models.components import component_config
from lookalike.models.presets import MllmConfig, load_preset, preset_from_dict
from lookalike.models.tokenizer import PromptTokenizer
from lookalike.models.weights import read_tensors
from lookalike.registry.versions import identify
from lookalike.storage import open_store

GOOD: dict[str, Any] = {"format": 1, "base": None, "preset": {}, "components": {"vae/config.json": "0" * 64}}
CHANGES: dict[str, dict[str, Any]] = {
    "format of later": {"format": 99},
    "format is a list": {"format": [1]},
    "format is true": {"format": True},
    "base is text": {"base": "file:///base"},
    "base is empty": {"base": {}},
    "base's location is a number": {"base": {"uri": 5, "sha256": "a"}},
    "base has no hash": {"base": {"uri": "file:///base"}},
    "preset is a number": {"preset": 5},
    "preset lacks sizes and references": {"preset": {"stages": "paper"}},
    "MLLM is a number": {"preset": {"stages": "paper", "height": 8, "width": 8, "references": {}, "mllm": 5}},
    "components are a list": {"components": ["vae"]},
    "a hash is a number": {"components": {"vae/config.json": 5}},
}
TEXTS = {
    "empty": b"",
    "cut": b'{"format": 1',
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "UTF-16": b"\xff\xfe{\0",
}
BROKEN = {name: json.dumps({**GOOD, **change}).encode() for name, change in CHANGES.items()} | TEXTS


@pytest.mark.parametrize("read", [identify, lambda uri: locate_bundle(uri)], ids=["registry", "jobs"])
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_manifest_is_an_error_that_names_it(data: bytes, read: Callable[[str], object], tmp_path: Path) -> None:
    open_store(str(tmp_path)).write("bundle.json", data)
    with pytest.raises(InputError) as refused:
        read(str(tmp_path))
    assert "bundle.json" in str(refused.value.value)
    assert refused.value.fix


def test_whole_manifest_is_read() -> None:
    assert parse_manifest(json.dumps(GOOD).encode(), "bundle.json") == GOOD


@pytest.mark.parametrize("data", [None, *TEXTS.values(), b"{}"], ids=["missing", *TEXTS, "lacks a key"])
def test_broken_configuration_of_a_component_is_an_error_that_names_it(data: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    if data is not None:
        (tmp_path / "vae" / "config.json").write_bytes(data)
    with pytest.raises(InputError) as refused:
        component_config(tmp_path, "vae", "block_out_channels")
    assert str(refused.value.value).endswith("vae/config.json")
    assert refused.value.fix


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"{}" * 100], ids=["empty", "header beyond the end", "text"])
def test_broken_weights_are_an_error_that_names_the_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError) as refused:
        list(read_tensors(tmp_path))
    assert str(refused.value.value).endswith("model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"references": {"max_references": "x"}},
        {"references": None},
        {"mllm": 5},
        {"height": "x"},
        {"height": None},
        {"unknown": 1},
        {"transformer": [1]},
        {"lora": {"rank": "x"}},
        {"stages": {}},
        {"stages": None},
    ],
    ids=str,
)
def test_broken_preset_is_an_error_that_names_its_file(change: dict[str, Any]) -> None:

    values = json.loads(json.dumps(dataclasses.asdict(load_preset("mini"))))
    with pytest.raises(ConfigError) as refused:
        preset_from_dict({**values, **change}, origin="bundle.json")
    assert "bundle.json" in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": -8},
        *({"mllm": {name: 0}} for name in ("image_size", "tokens_per_image", "max_prompt_tokens")),
        {"references": {"height": -64}},
        {"aggregator": {"head_dim": 0}},
    ],
    ids=str,
)
def test_sizes_of_a_preset_below_one_are_refused_by_name(change: dict[str, Any]) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(load_preset("mini"))))
    for name, value in change.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match="below 1"):
        preset_from_dict(values)


@pytest.mark.parametrize(
    "template", ["{nope}", "{images}", "{images}{prompt}{", "{images}{prompt}{prompt}", "{}{}", "a"]
)
def test_template_without_its_placeholders_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"template does not contain"):
        MllmConfig(template=template)


@pytest.mark.parametrize("data", [*TEXTS.values(), b"{}", b'{"model": 5}'], ids=[*TEXTS, "no model", "another model"])
def test_broken_tokenizer_is_an_error_that_names_the_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(InputError) as refused:
        PromptTokenizer(tmp_path / "tokenizer.json", ("<a>", "<b>", "<c>")).ids("a mug")
    assert str(refused.value.value).endswith("tokenizer.json")
