"""Every bundle contains a preset, which a tenant may have written: sizes above the limits are refused."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from lookalike.bundles.build import materialise
from lookalike.errors import ConfigError
from lookalike.models.limits import VARIABLE, PresetLimits, limits
from lookalike.models.presets import list_presets, load_preset, preset_from_dict


def changed(name: str, value: Any) -> dict[str, Any]:
    values = json.loads(json.dumps(dataclasses.asdict(load_preset("mini"))))
    *outer, last = name.split(".")
    part = values
    for key in outer:
        part = part[key]
    part[last] = value
    return dict(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mllm.template", "{images:>1000000000}{prompt}"),
        ("mllm.template", "{images}{prompt:>3000000000}"),
        ("mllm.template", "{images!r}{prompt}"),
        ("mllm.template", "{images}{prompt}" + "x" * 20_000),
        ("mllm.image_token", "x" * 20_000),
        ("mllm.tokens_per_image", 10**9),
        ("mllm.max_prompt_tokens", 10**9),
        ("mllm.image_size", 10**6),
        ("references.max_references", 10**9),
        ("references.height", 10**6),
        ("aggregator.layer_blocks", 10**9),
        ("aggregator.inner_width", 128 * 10**6),
        ("height", 10**6),
        ("transformer.config.num_layers", 10**9),
        ("transformer.config.attention_head_dim", 10**10),
        ("mllm.config", {"text_config": {"num_hidden_layers": 10**6}}),
        ("vae.config.block_out_channels", [8, 10**12]),
    ],
)
def test_size_above_its_limit_is_refused(name: str, value: Any) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError):
        preset_from_dict(changed(name, value))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_are_within_the_limits(name: str) -> None:
    assert load_preset(name).name


def test_operator_raises_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    values = changed("aggregator.layer_blocks", 2_000)
    with pytest.raises(ConfigError, match="layer_blocks of a preset is above 1024") as refused:
        preset_from_dict(values)
    assert refused.value.fix == "lower aggregator.layer_blocks, or raise layers in LOOKALIKE_PRESET_LIMITS"
    monkeypatch.setenv(VARIABLE, '{"layers": 2000}')
    assert preset_from_dict(values).aggregator.layer_blocks == 2_000
    with pytest.raises(ConfigError, match="above 2000"):
        preset_from_dict(changed("aggregator.layer_blocks", 2_001))
    with pytest.raises(ConfigError, match="above 16384"):
        preset_from_dict(changed("height", 10**6))


@pytest.mark.parametrize(
    "text", ["nonsense", "[1]", '{"depth": 3}', '{"layers": "many"}', '{"layers": 0}', '{"side": 1.5}']
)
def test_invalid_limits_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=VARIABLE) as refused:
        limits()
    assert "layers, number, template" in refused.value.fix


def test_every_limit_is_enforced() -> None:
    """Each limit refuses one more than its value."""
    places = {
        "side": "height",
        "references": "references.max_references",
        "width": "aggregator.inner_width",
        "layers": "transformer.config.num_layers",
        "number": "transformer.config.in_channels",
        "template": "mllm.image_suffix",
        "tile": "mllm.image_size",
        "tokens_per_image": "mllm.tokens_per_image",
        "prompt_tokens": "mllm.max_prompt_tokens",
    }
    for limit, most in dataclasses.asdict(PresetLimits()).items():
        value = "x" * (most + 1) if limit == "template" else most + 1
        with pytest.raises(ConfigError, match=f"above {most}") as refused:
            preset_from_dict(changed(places[limit], value))
        assert f"raise {limit} in {VARIABLE}" in refused.value.fix


@pytest.mark.parametrize("name", ["../models", "mini/../../errors.py", "/etc"])
def test_asset_outside_the_package_is_refused(name: str, tmp_path: Path) -> None:
    preset = preset_from_dict(changed("vae.source", f"package:{name}"))
    with pytest.raises(ConfigError, match="outside the assets"):
        materialise(preset, tmp_path / "bundle")
    preset = dataclasses.replace(
        preset.from_seed("mllm"), mllm=dataclasses.replace(preset.mllm, source=None, vocabulary=name)
    )
    with pytest.raises(ConfigError, match="outside the assets"):
        materialise(preset, tmp_path / "other")
