"""Encode the latents of triplets when their shard is written, so that training runs skip the VAE."""

import numpy as np
import torch

from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.data.images import decode
from lookalike.data.triplets import write_latents
from lookalike.models.vae import LatentCache, load_vae
from lookalike.pixels import crop_resize


class Encoder:
    """The VAE of a bundle, and the sizes of its model's targets and references."""

    def __init__(self, bundle_uri: str, device: str) -> None:
        folder = local_bundle(bundle_uri)
        preset = read_preset(folder)
        self._target = preset.height, preset.width
        self._references = preset.references.height, preset.references.width
        self._vae = load_vae(folder).to(device)
        self._cache = LatentCache()  # a photo is in several triplets of its subject

    def of(self, target: bytes, references: list[bytes]) -> bytes:
        """Return a safetensors file with the packed latents (float16) of a target and its references."""
        return write_latents(self._encode([target], self._target)[0], self._encode(references, self._references))

    def _encode(self, files: list[bytes], size: tuple[int, int]) -> np.ndarray:
        images = np.stack([crop_resize(decode(data), *size).transpose(2, 0, 1) for data in files])
        return np.asarray(self._cache.encode(self._vae, torch.from_numpy(images)).cpu().numpy())
