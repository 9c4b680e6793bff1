"""A small DiT with seeded weights, and LoRAs of peft on it that change much."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def plain(bundle_dir, perturb) -> Callable[[], Any]:
    """``plain()``: the same DiT again, no gate of which is zero."""
    from diffusers import FluxTransformer2DModel

    def make() -> Any:
        return perturb(FluxTransformer2DModel.from_pretrained(bundle_dir / "transformer")).eval()

    return make


@pytest.fixture
def trained() -> Callable[..., Any]:
    """``trained(transformer, r=4, ...)``: peft's model with a LoRA that changes much."""
    from peft import LoraConfig, get_peft_model

    def make(transformer: Any, **values: Any) -> Any:
        torch.manual_seed(1)
        model = get_peft_model(transformer, LoraConfig(**values))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or "magnitude" in name:
                with torch.no_grad():
                    parameter += 0.1 * torch.randn_like(parameter)
        return model.eval()

    return make


@pytest.fixture
def peft_folder(plain, trained) -> Callable[..., Path]:
    """``peft_folder(folder, changes, r=2)``: a LoRA as peft saves it, with ``changes`` in its adapter_config.json."""

    def make(folder: Path, changes: dict[str, Any] | None = None, **values: Any) -> Path:
        values = {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"], **values}
        trained(plain(), **values).save_pretrained(str(folder))
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **(changes or {})}))
        return folder

    return make
