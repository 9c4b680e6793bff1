"""A preset stands in every bundle, so a tenant may write it: sizes that would fill any memory are refused."""

import dataclasses
import json
import time
from typing import Any

import pytest

from lookalike.errors import ConfigError
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
def test_a_size_that_no_machine_has_is_refused(name: str, value: Any) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError):
        preset_from_dict(changed(name, value))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_are_within_the_bounds(name: str) -> None:
    assert load_preset(name).name
