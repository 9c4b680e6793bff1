"""Pretraining of a miniature's parts, each alone in one process: the autoencoder, and the joint encoder as captioner.

A plain loop that keeps its state in one safetensors file: it can be killed, and resumes with the same numbers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lookalike.errors import ConfigError
from lookalike.models.batch import Batch
from lookalike.models.joint import encoder_inputs
from lookalike.values import check_values

STATE = "state.safetensors"
LOSSES = "losses.jsonl"

Figures = dict[str, float]


@dataclass(frozen=True)
class FitConfig:
    """The plain loop."""

    steps: int = 4000
    """Optimizer steps."""
    batch_size: int = 4
    """Images (or sequences) of a step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW: reached after 2 % of the steps, then a cosine down to 2 % of it."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    save_every: int = 100
    """Steps between two saved states."""
    threads: int = 1
    """Threads of torch. Where other work shares the cores, two are slower than one: they wait for each other."""
    seed: int = 0
    """Of initial weights, order and augmentation of the data."""

    def __post_init__(self) -> None:
        check_values(self)
        if min(self.steps, self.batch_size, self.save_every, self.threads) < 1 or self.learning_rate <= 0:
            raise ConfigError(
                "steps, batch_size, save_every, threads and learning_rate must be above 0", value=self, fix="raise them"
            )


def fit(
    model: nn.Module,
    loss: Callable[[np.random.Generator, int], tuple[Tensor, Figures]],
    config: FitConfig,
    folder: Path,
    report: Callable[[int, Figures], None],
) -> Figures:
    """Train ``model`` in place, and return the mean figures of the last window.

    Args:
        model: its trainable parameters are trained in float32.
        loss: draws the batch of a step by a generator of (seed, step); gives a scalar and figures to log.
        config: length, step size and seed.
        folder: keeps ``state.safetensors`` and ``losses.jsonl``; an earlier attempt's state is picked up.
        report: called with the number of steps done and the figures of the last one.
    """
    torch.set_num_threads(config.threads)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    done = _resume(folder, optimizer, parameters)
    window: list[Figures] = []
    means: Figures = {}
    for step in range(done, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step / config.steps)
        value, figures = loss(np.random.default_rng([config.seed, step]), step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        window.append({"loss": value.item(), "gradient_norm": float(norm), **figures})
        report(step + 1, window[-1])
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            means = {name: float(np.mean([figures[name] for figures in window])) for name in window[0]}
            with (folder / LOSSES).open("a") as file:
                file.write(json.dumps({"step": step + 1, **means}) + "\n")
            _save(folder, optimizer, parameters, step + 1)
            window = []
    return means


def vae_loss(vae: Any, images: Tensor, noise: Tensor, kl_weight: float = 2e-4) -> tuple[Tensor, Figures]:
    """Reconstruction of ``images`` (uint8 ``[B, 3, H, W]``) by an AutoencoderKL: L1 + squares + edges + a little KL.

    ``noise`` float32 ``[B, C, h, w]`` draws from the posterior. Pixels are compared in [-1, 1].
    """
    pixels = images.float() / 127.5 - 1
    posterior = vae.encode(pixels, return_dict=False)[0]
    output = vae.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
    difference = output - pixels
    edges = torch.diff(difference, dim=-1).abs().mean() + torch.diff(difference, dim=-2).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    value = difference.abs().mean() + difference.square().mean() + 0.5 * edges + kl_weight * kl
    return value, {"l1": difference.abs().mean().item(), "kl": kl.item()}


@torch.no_grad()
def normalise_latents(vae: Any, images: Tensor) -> None:
    """Set shift and scaling factors so that the scaled latents of ``images`` have mean 0 and deviation 1."""
    latents = torch.cat(
        [vae.encode(part.float() / 127.5 - 1, return_dict=False)[0].mode() for part in images.split(32)]
    )
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 5), scaling_factor=round(1 / latents.std().item(), 5)
    )


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor) -> Tensor:
    """uint8 ``[B, 3, H, W]`` through the autoencoder and back."""
    parts = []
    for part in images.split(32):
        latents = vae.encode(part.float() / 127.5 - 1, return_dict=False)[0].mode()
        parts.append(vae.decode(latents, return_dict=False)[0])
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB over uint8 images ``[B, 3, H, W]``."""
    squares = (images.float() - others.float()).square().flatten(1).mean(1).clamp_min(1e-3)
    return float((10 * torch.log10(255**2 / squares)).mean())


def caption_loss(mllm: Any, batch: Batch) -> tuple[Tensor, Figures]:
    """Next-token loss of the prompt behind its images, by a multimodal model of transformers with language head."""
    logits, targets = _predictions(mllm, batch)
    value = nn.functional.cross_entropy(logits, targets)
    return value, {"accuracy": (logits.argmax(-1) == targets).float().mean().item()}


@torch.no_grad()
def caption_accuracy(mllm: Any, batches: list[Batch], groups: Mapping[str, set[int]]) -> Figures:
    """Share of prompt tokens predicted right given the true ones before: of all, and of each group of token ids."""
    logits, targets = zip(*(_predictions(mllm, batch) for batch in batches), strict=True)
    right, target = torch.cat(logits).argmax(-1) == torch.cat(targets), torch.cat(targets)
    figures = {"all": right.float().mean().item()}
    for name, ids in groups.items():
        chosen = torch.isin(target, torch.tensor(sorted(ids)))
        figures[name] = right[chosen].float().mean().item()
    return figures


def _predictions(mllm: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits ``[N, V]`` and the N text tokens that they should predict: those after the last image of each row."""
    hidden = mllm.base_model(**encoder_inputs(mllm.config, batch), use_cache=False).last_hidden_state
    real_image = batch.image_mask & batch.attention_mask
    position = torch.arange(batch.input_ids.shape[1])
    last_image = torch.where(real_image, position, 0).amax(1, keepdim=True)
    text = batch.attention_mask & (position > last_image + 1)  # + 1: the mark that ends the image
    text[:, 0] = False  # nothing stands before the first token
    logits = mllm.lm_head(hidden[:, :-1][text[:, 1:]])
    return logits, batch.input_ids[:, 1:][text[:, 1:]]


def _schedule(share: float) -> float:
    """Factor on the learning rate after that share of the steps."""
    return min(1.0, 50 * share + 0.02) * float(0.51 + 0.49 * np.cos(np.pi * share))


def _save(folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], step: int) -> None:
    tensors = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{key}.{name}": optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
    part = folder / f".{STATE}"
    save_file(tensors, part, metadata={"step": str(step)})
    part.replace(folder / STATE)


def _resume(folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> int:
    """Take up the state in ``folder`` and return its number of steps; 0 where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / STATE).is_file():
        return 0
    with safe_open(folder / STATE, framework="pt") as state:
        step = int(state.metadata()["step"])
        for name, parameter in parameters.items():
            parameter.data.copy_(state.get_tensor(f"model.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": state.get_tensor(f"exp_avg.{name}"),
                "exp_avg_sq": state.get_tensor(f"exp_avg_sq.{name}"),
            }
    return step
