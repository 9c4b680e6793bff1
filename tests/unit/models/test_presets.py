import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from lookalike.errors import ConfigError
from lookalike.models.presets import PRESETS_DIR, LoraConfig, check_lora, list_presets, load_preset, preset_from_dict


@pytest.mark.parametrize("name", list_presets())
def test_every_shipped_preset_survives_its_copy_in_a_bundle(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert preset_from_dict(json.loads(json.dumps(dataclasses.asdict(preset)))) == preset


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset \('midi'\); use one of .*mini"):
        load_preset("midi")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heigth": 64}, "heigth"),
        ({"mllm": {"image_sise": 64}}, "image_sise"),
        ({"height": "tall"}, "height"),
        ({"lora": {"rank": 4096}}, r"lora.rank=4096 exceeds the attention width 192; lower lora.rank"),
        ({"lora": {"rank": 0}}, "lora.rank is below 1"),
        ({"aggregator": {"kind": "cls", "inner_width": 96, "head_dim": 32}}, "kind"),
        ({"aggregator": {"inner_width": 100, "head_dim": 32}}, "not a multiple of its head_dim"),
    ],
)
def test_a_bad_key_or_value_is_named(change: dict, message: str, tmp_path: Path) -> None:
    values = {**yaml.safe_load((PRESETS_DIR / "mini.yaml").read_text()), **change}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        load_preset(path)


def test_lora_rank_above_the_attention_width_is_refused() -> None:
    check_lora(LoraConfig(rank=512), {"num_attention_heads": 24, "attention_head_dim": 128})
    with pytest.raises(ConfigError, match="rank=4096 exceeds the attention width 3072"):
        check_lora(LoraConfig(rank=4096), {"num_attention_heads": 24, "attention_head_dim": 128})


def test_chosen_parts_start_from_a_seed_and_the_others_keep_their_source() -> None:
    preset = load_preset("mini").from_seed("transformer", "aggregator")
    assert preset.transformer.source is None
    assert preset.aggregator.source is None
    assert preset.vae.source == "package:mini/vae"
    from_the_hub = dataclasses.replace(preset, vae=dataclasses.replace(preset.vae, config={}))
    with pytest.raises(ConfigError, match=r"has no vae\.config, which a part from a seed needs"):
        from_the_hub.from_seed("vae")
