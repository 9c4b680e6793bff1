"""Training of one part: it learns, resumes after a kill with the same losses, and its measurements are right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lookalike.errors import ConfigError
from lookalike.storage import open_store
from lookalike.training import checkpoint, parts
from lookalike.training.history import METRICS


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def regression(net: nn.Module, stop_at: int | None = None) -> object:
    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, parts.Metrics]:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32))
        return (net(x) - x.sum(1, keepdim=True)).square().mean(), {"one": 1.0}

    return loss


def run(folder: Path, stop_at: int | None = None, **settings: object) -> nn.Module:
    net = model()
    config = parts.FitConfig(steps=40, save_every=10, learning_rate=0.1, **settings)  # type: ignore[arg-type]
    parts.fit(net, regression(net, stop_at), config, folder)  # type: ignore[arg-type]
    return net


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def test_it_learns_and_records_each_step(tmp_path: Path) -> None:
    run(tmp_path)
    records = metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(40))
    losses = [record["loss"] for record in records]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:10])
    assert records[0]["one"] == 1


def weights_and_losses(net: nn.Module, folder: Path) -> tuple[list[list[float]], list[float]]:
    weights = [value.flatten().tolist() for value in net.state_dict().values()]
    return weights, [record["loss"] for record in metrics(folder)]


@pytest.mark.parametrize("stop_at", [20, 27])
def test_killed_and_resumed_it_ends_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at)
    resumed = run(tmp_path / "cut")
    assert weights_and_losses(resumed, tmp_path / "cut") == weights_and_losses(whole, tmp_path / "whole")


def test_the_mean_of_the_last_window_is_returned_also_by_a_complete_run(tmp_path: Path) -> None:
    config = parts.FitConfig(steps=5, save_every=2)
    net = model()
    for _ in range(2):
        means = parts.fit(net, regression(net), config, tmp_path)  # type: ignore[arg-type]
        assert means["loss"] == metrics(tmp_path)[4]["loss"]


def test_state_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 20)
    store = open_store(str(tmp_path / "cut"))
    _, tensors = checkpoint.load(store.child(checkpoint.CHECKPOINTS), 20)
    shutil.rmtree(tmp_path / "cut")
    earlier = {key.replace("master/", "model.").replace("/", "."): value for key, value in tensors.items()}
    (tmp_path / "cut").mkdir()
    save_file(earlier, tmp_path / "cut" / "state.safetensors", metadata={"step": "20"})
    resumed = run(tmp_path / "cut")
    expected_weights, expected_losses = weights_and_losses(whole, tmp_path / "whole")
    assert weights_and_losses(resumed, tmp_path / "cut") == (expected_weights, expected_losses[20:])


def test_invalid_settings_are_rejected() -> None:
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
