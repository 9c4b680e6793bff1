"""Inputs of Qwen3-VL: patches in merging order, and positions in time, height and width.

transformers copies the grid of patches from the device for each image. Our tiles all have one size, so everything that
depends on the grid is computed once on the CPU, by transformers' own functions, and passed in.

N images, g patches a side, m x m patches merged into one token, p pixels a side of a patch, t frames of a patch.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lookalike.models.batch import Batch


def encoder_inputs(config: Any, batch: Batch) -> dict[str, Tensor]:
    """Return the arguments of ``Qwen3VLModel.forward``; ``image_…`` are its vision inputs, from the patch grid."""
    vision, pixels = config.vision_config, batch.pixel_values.flatten(0, 1)
    side = pixels.shape[-1] // vision.patch_size
    on_host, on_device = _grid(len(pixels), side, vision.spatial_merge_size, int(vision.num_position_embeddings**0.5))
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": rotary_positions(batch.image_mask, side // vision.spatial_merge_size),
        "pixel_values": patchify(pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size),
        **on_host,
        **{name: tensor.to(pixels.device) for name, tensor in on_device.items()},
    }


def patchify(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """``[N, 3, h, w]`` → ``[N g², 3 t p²]``: patches that will be merged are adjacent; an image repeats its frame."""
    images, channels, height, width = pixels.shape
    blocks = pixels.view(
        images, channels, height // (merge * patch), merge, patch, width // (merge * patch), merge, patch
    )
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # N rows columns m m 3 1 p p
    return patches.expand(*[-1] * 6, frames, -1, -1).reshape(-1, channels * frames * patch * patch)


def rotary_positions(image_mask: Tensor, side: int) -> Tensor:
    """Compute positions in time, height and width, int64 ``[3, B, L]``; each image has ``side``² tokens.

    A text token advances all three by one; an image covers ``side`` positions of height and width, and advances by
    ``side``. ``image_mask`` is bool ``[B, L]``.
    """
    image, text = image_mask.long(), image_mask.logical_not().long()
    seen = image.cumsum(1) - image  # image tokens before this one
    start = text.cumsum(1) - text + seen // side**2 * side
    within = seen % side**2 * image
    return start + torch.stack([torch.zeros_like(within), within // side, within % side])


@lru_cache(maxsize=16)
def _grid(images: int, side: int, merge: int, table_side: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute the inputs that depend on the grid alone: those that stay on the CPU, and those for the device."""
    from transformers.vision_utils import (
        get_vision_cu_seqlens,
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
    )

    with torch.device("cpu"):
        thw = torch.tensor([[1, side, side]]).repeat(images, 1)
        indices, weights = get_vision_interpolation_indices_and_weights(
            thw, table_side, mode="bilinear", align_corners=True, spatial_merge_size=merge
        )
        positions = get_vision_position_ids(thw, merge)
        on_host = {"image_grid_thw": thw, "image_cu_seqlens": get_vision_cu_seqlens(thw)}
    return on_host, {
        "image_position_ids": positions,
        "image_interp_indices": indices,
        "image_interp_weights": weights,
    }
