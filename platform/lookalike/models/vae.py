"""Convert images to packed latents and back with diffusers' AutoencoderKL, as diffusers' Flux pipelines do."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike.documents import decoding
from lookalike.models.components import PATCH, REPAIR
from lookalike.models.weights import check_names
from lookalike.process_wide import alone_in_process

_PIXELS_AT_ONCE = 512 * 512  # on a GPU: small images in batches, large ones one by one


@alone_in_process()
def load_vae(bundle_dir: Path) -> Any:
    """Load the AutoencoderKL of a bundle in a local folder: frozen, float32, in evaluation mode.

    Raises InputError if it cannot be loaded, or a tensor is missing or unknown.
    """
    from diffusers import AutoencoderKL

    with decoding("a VAE of diffusers", str(bundle_dir / "vae"), fix=REPAIR):
        vae = AutoencoderKL.from_pretrained(bundle_dir / "vae", use_safetensors=True)
    check_names({"vae": vae}, bundle_dir)
    return vae.requires_grad_(False).eval()


def downsampling(vae: Any) -> int:
    """Return the pixels of an image's side per latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def token_grid(vae: Any, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of tokens of an image of ``height`` x ``width`` pixels."""
    side = downsampling(vae) * PATCH
    return height // side, width // side


def pack(latents: Tensor) -> Tensor:
    """Pack latents ``[B, C, H, W]`` into tokens ``[B, H/2 · W/2, 4 C]`` in the order of diffusers' FluxPipeline."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Invert :func:`pack` for tokens of ``grid`` (rows, columns)."""
    batch, _, width = tokens.shape
    patches = tokens.view(batch, *grid, width // PATCH**2, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, width // PATCH**2, grid[0] * PATCH, grid[1] * PATCH)


@torch.no_grad()
def encode(vae: Any, images: Tensor, device: torch.device | None = None) -> Tensor:
    """Encode uint8 images ``[B, 3, H, W]`` to packed, shifted and scaled latents ``[B, T, C]``.

    They are the posterior's mode, without noise. ``device`` is where the VAE computes, by default its current device
    (pass it for an offloaded VAE).
    """
    pixels = images.to(device or vae.device, vae.dtype) / 127.5 - 1
    latents = vae.encode(pixels, return_dict=False)[0].mode()
    scaled: Tensor = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    return pack(scaled)


def decode(vae: Any, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Decode packed latents ``[B, T, C]`` to uint8 images ``[B, 3, H, W]``."""
    return ((_decoded(vae, tokens, grid).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def decode_floats(vae: Any, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Decode packed latents ``[B, T, C]`` to float32 images ``[B, 3, H, W]`` in [0, 1], as diffusers returns them."""
    return (_decoded(vae, tokens, grid).float() / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def _decoded(vae: Any, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Decode to images ``[B, 3, H, W]`` of about -1 to 1."""
    latents = unpack(tokens.to(vae.dtype), grid) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    pixels: Tensor = vae.decode(latents, return_dict=False)[0]
    return pixels


class LatentCache:
    """A cache of latents: the VAE is frozen, and training encodes an image many times.

    The VAE always encodes the same number of images of a size at once: one on a CPU, on a GPU as many as have the
    pixels of a 512² image, padded with black ones. So latents, which differ in the last bits with the batch size,
    depend only on their image, and a resumed run computes the same ones. The least recently used latents are removed
    first. Threads may share a cache.
    """

    def __init__(self, capacity_mib: int = 256) -> None:
        self._capacity = capacity_mib * 2**20
        self._bytes = 0
        self._latents: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """As :func:`encode`, ``[B, T, C]`` on the images' device. Use one cache for each VAE."""
        header = repr(tuple(images.shape[1:])).encode()
        keys = [hashlib.sha256(header + image.tobytes()).digest() for image in images.cpu().numpy()]
        with self._lock:
            wanted = self._wanted(vae, images, keys)
        return torch.stack([wanted[key] for key in keys]).to(images.device)

    def _wanted(self, vae: Any, images: Tensor, keys: list[bytes]) -> dict[bytes, Tensor]:
        wanted: dict[bytes, Tensor] = {}
        for key in keys:
            if key in self._latents:
                self._latents.move_to_end(key)
                wanted[key] = self._latents[key]
        missing = {key: index for index, key in enumerate(keys) if key not in wanted}
        for key, latents in zip(missing, self._computed(vae, images[list(missing.values())]), strict=True):
            wanted[key] = self._latents[key] = latents
            self._bytes += latents.nbytes
        while self._bytes > self._capacity:
            self._bytes -= self._latents.popitem(last=False)[1].nbytes
        return wanted

    def _computed(self, vae: Any, images: Tensor) -> Iterator[Tensor]:
        size = 1 if vae.device.type == "cpu" else max(1, _PIXELS_AT_ONCE // (images.shape[-2] * images.shape[-1]))
        for part in images.split(size) if len(images) else ():
            filled = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
            yield from encode(vae, filled)[: len(part)].cpu()
