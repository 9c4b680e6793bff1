"""Configuration of ``jobs/pretrain.py``."""

from dataclasses import field
from typing import Literal

from lookalike.training import parts
from lookalike.values import configuration


@configuration()
class PretrainConfig:
    """Which part is pretrained, on which shards, for how long."""

    part: Literal["vae", "mllm"]
    """`vae`: reconstruct images; `mllm`: caption them."""
    raw: str
    """URI of raw shards (from ingest), preferably of a large sample world."""
    out: str
    """Local folder: the part goes to `<out>/<part>` in its library's format, the run's state to `<out>/<part>-run`."""
    preset: str = "mini"
    """Preset (name or YAML file) whose configuration of the part is trained."""
    photographs: float = 0.35
    """Share of the VAE's images that are crops of scikit-image's photographs instead."""
    window_px: int = 32
    """The VAE is convolutional: for the first 80 % of its steps it sees twice `fit.batch_size` windows of this side,
    at half the cost of whole images; the rest, on whole images, settles what depends on their size."""
    fit: parts.FitConfig = field(default_factory=parts.FitConfig)
    """Length, batch size, learning rate and seed."""
