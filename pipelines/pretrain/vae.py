"""Pretrain a preset's VAE to reconstruct images, and measure it on held-out subjects."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookalike.models.presets import load_preset
from lookalike.models.vae import downsampling
from lookalike.pixels import crop_resize
from lookalike.process_wide import alone_in_process
from lookalike.training import parts
from pipelines.pretrain import augment
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.subjects import Subject

_MEASURED = 256  # held-out images


@alone_in_process()
def pretrain_vae(
    config: PretrainConfig, initial: Path, train: list[Subject], held_out: list[Subject], run: Path
) -> dict[str, Any]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(initial / "vae").train()
    world = [image for subject in train for image in subject.images]
    photographs = augment.photographs() if config.photographs > 0 else []
    side = load_preset(config.preset).height

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, parts.Metrics]:
        whole = step >= 0.8 * config.fit.steps
        images = [
            augment.vary(photographs[rng.integers(len(photographs))], side, rng)
            if rng.random() < config.photographs
            else augment.zoom(world[rng.integers(len(world))], side, rng)
            for _ in range(config.fit.batch_size * (1 if whole else 2))
        ]
        if not whole:
            images = [augment.window(image, min(side, config.window_px), rng) for image in images]
        latent_side = images[0].shape[0] // downsampling(vae)
        shape = (len(images), vae.config.latent_channels, latent_side, latent_side)
        return parts.vae_loss(vae, _tensor(images), torch.from_numpy(rng.standard_normal(shape, np.float32)))

    last = parts.fit(vae, loss, config.fit, run, config.part)
    vae.eval()
    rng = np.random.default_rng(config.fit.seed)
    seen = _tensor([crop_resize(world[i], side, side) for i in rng.choice(len(world), min(512, len(world)), False)])
    parts.normalise_latents(vae, seen)
    fresh = _tensor([crop_resize(image, side, side) for s in held_out for image in s.images][:_MEASURED])
    crops = _tensor([augment.vary(photo, side, rng) for photo in photographs or world[:9] for _ in range(4)])
    vae.half().save_pretrained(Path(config.out) / "vae")
    vae.float()
    output, crops_output = parts.reconstruct(vae, fresh), parts.reconstruct(vae, crops)
    rows = [fresh[:24:2], output[:24:2], crops[:24:2], crops_output[:24:2]]
    augment.save_grid(run / "reconstructions.png", [row.numpy() for row in rows])
    return {
        "last": last,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "psnr_db_held_out_subjects": parts.psnr(fresh, output),
        "psnr_db_photograph_crops": parts.psnr(crops, crops_output),
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": vae.config.shift_factor,
    }


def _tensor(images: list[augment.Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
