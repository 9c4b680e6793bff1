"""The plain loop: it learns, and goes on after a kill with the same numbers; what it measures is what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lookalike.errors import ConfigError
from lookalike.training import parts


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def regression(net: nn.Module, stop_at: int | None = None) -> object:
    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, parts.Figures]:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32))
        return (net(x) - x.sum(1, keepdim=True)).square().mean(), {"one": 1.0}

    return loss


def run(folder: Path, stop_at: int | None = None, **settings: object) -> nn.Module:
    net = model()
    config = parts.FitConfig(steps=40, save_every=10, learning_rate=0.1, **settings)  # type: ignore[arg-type]
    parts.fit(net, regression(net, stop_at), config, folder, lambda step, figures: None)  # type: ignore[arg-type]
    return net


def test_it_learns_and_logs(tmp_path: Path) -> None:
    run(tmp_path)
    losses = [json.loads(line) for line in (tmp_path / parts.LOSSES).read_text().splitlines()]
    assert [entry["step"] for entry in losses] == [10, 20, 30, 40]
    assert losses[-1]["loss"] < 0.2 * losses[0]["loss"]
    assert losses[0]["one"] == 1


@pytest.mark.parametrize("stop_at", [20, 27])
def test_killed_and_resumed_it_ends_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at)
    resumed = run(tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert (tmp_path / "whole" / parts.LOSSES).read_text() == (tmp_path / "cut" / parts.LOSSES).read_text()


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="steps"):
        parts.FitConfig(steps=0)


def test_psnr() -> None:
    image = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert parts.psnr(image, image + 255) == pytest.approx(0)
    assert parts.psnr(image, image + 25) == pytest.approx(20 * np.log10(255 / 25), rel=1e-4)


def test_latents_are_normalised() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=[8],
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        norm_num_groups=4,
        layers_per_block=1,
    )
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    parts.normalise_latents(vae, images)
    latents = vae.encode(images.float() / 127.5 - 1, return_dict=False)[0].mode()
    scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.mean().item() == pytest.approx(0, abs=1e-3)
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)
    assert parts.reconstruct(vae, images).shape == images.shape
