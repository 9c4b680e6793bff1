"""Flow matching: noise levels, resolution shift, loss. Pure functions; a sample's identity seeds its random numbers.

``x_sigma = (1 - sigma) * clean + sigma * noise`` and the model predicts the velocity ``noise - clean``, as diffusers'
Flux and Stable Diffusion 3 do. B batch, T tokens, C channels.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookalike.models.batch import TensorFields
from lookalike.models.components import component_config
from lookalike.values import Positive, configuration


@configuration()
class FlowConfig:
    """Distribution of noise levels in training, and the resolution shift that training and sampling share."""

    base_shift: float = 0.5
    """Shift mu at ``base_image_seq_len`` tokens."""
    max_shift: float = 1.15
    """Shift mu at ``max_image_seq_len`` tokens; linear between and beyond both."""
    base_image_seq_len: int = 256
    """Patchified tokens of the image, references not counted."""
    max_image_seq_len: int = 4096
    """Patchified tokens of the image, references not counted."""
    logit_mean: float = 0.0
    """Mean of logit(sigma) before the shift."""
    logit_std: Positive = 1.0
    """Standard deviation of logit(sigma) before the shift."""

    @classmethod
    def from_bundle(cls, bundle_dir: Path) -> "FlowConfig":
        """Read the shift of a bundle's scheduler, so that training uses the sampler's noise levels."""
        return cls.from_scheduler(component_config(bundle_dir, "scheduler", file="scheduler_config.json"))

    @classmethod
    def from_scheduler(cls, config: Mapping[str, Any]) -> "FlowConfig":
        """Read the shift from the configuration of a FlowMatchEulerDiscreteScheduler."""
        if not config.get("use_dynamic_shifting", False):
            fixed = math.log(config.get("shift", 1.0))  # shift s of sigma is exp(mu) = s
            return cls(base_shift=fixed, max_shift=fixed)
        names = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        return cls(**{name: config[name] for name in names if name in config})

    def mu(self, tokens: int) -> float:
        """Return the shift of an image of that many patchified tokens (``calculate_shift`` of diffusers' Flux)."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)


@dataclass(frozen=True)
class Draw(TensorFields):
    """Random numbers of a batch."""

    noise: Tensor
    """float32 ``[B, T, C]``, standard normal."""
    sigma: Tensor
    """float32 ``[B]`` in (0, 1), shifted."""
    uniform: Tensor
    """float32 ``[B, 2]`` in [0, 1): decides the dropout of MLLM tokens and of references."""


def seed_of(*identity: object) -> int:
    """Return a 128-bit seed from a sample's identity (run seed, sample id, …), the same in every process."""
    digest = hashlib.sha256(json.dumps([str(part) for part in identity]).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def draw(sample_ids: Sequence[str], seed: object, shape: tuple[int, int], flow: FlowConfig) -> Draw:
    """Sample noise of ``shape`` = (T, C), noise level and dropout of each sample, independently of its batch.

    ``seed`` is anything with a stable ``str``: a number, or (seed, epoch).
    """
    shift = flow.mu(shape[0])
    noise, sigma, uniform = [], [], []
    for sample_id in sample_ids:
        random = np.random.default_rng(seed_of(seed, sample_id))
        sigma.append(_level(random, flow, shift))
        uniform.append(random.random(2, dtype=np.float32))
        noise.append(random.standard_normal(shape, dtype=np.float32))
    arrays = np.stack(noise), np.array(sigma, np.float32), np.stack(uniform)
    return Draw(*map(torch.from_numpy, arrays))


def noise_levels(sample_ids: Sequence[str], seed: object, tokens: int, flow: FlowConfig) -> list[float]:
    """Return the noise level that :func:`draw` samples for each sample's image of ``tokens`` tokens."""
    return [_level(np.random.default_rng(seed_of(seed, name)), flow, flow.mu(tokens)) for name in sample_ids]


def _level(random: np.random.Generator, flow: FlowConfig, shift: float) -> float:
    logit = flow.logit_mean + flow.logit_std * random.standard_normal()
    return 1 / (1 + math.exp(-(logit + shift)))  # diffusers' exponential time shift adds mu to the logit


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Interpolate ``[B, T, C]`` at ``sigma`` ``[B]``."""
    level = sigma.view(-1, *[1] * (clean.ndim - 1)).to(clean.dtype)
    return (1 - level) * clean + level * noise


def flow_matching_loss(predicted: Tensor, noise: Tensor, clean: Tensor) -> Tensor:
    """Compute the mean squared error of the velocity for each sample: float32 ``[B]``."""
    error = predicted.float() - (noise.float() - clean.float())
    return error.square().flatten(1).mean(dim=1)
