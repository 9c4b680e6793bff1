"""What differs between families of multimodal models, in one place; everything else treats them alike.

Light at import: data workers ask it how many tokens an image becomes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lookalike.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from lookalike.models.batch import Batch
    from lookalike.models.presets import MllmConfig


class Family(Protocol):
    """One family: how many tokens an image becomes, and how a batch is handed over."""

    classes: tuple[str, ...]
    """Classes of transformers that building a model imports."""
    base_class: str
    """The one without language head, as ``model_index.json`` names it."""

    def tokens_per_image(self, config: Mapping[str, Any], side: int) -> int:
        """Placeholders of a square image of ``side`` pixels, by the values of a ``config.json``."""

    def image_processor(self, config: Mapping[str, Any], mllm: "MllmConfig") -> Any:
        """transformers' own image processor, set so that it makes of a square image what we make of it."""

    def inputs(self, config: Any, batch: "Batch") -> "dict[str, Tensor]":
        """Arguments of the base model's ``forward`` for a batch; ``config`` is the model's.

        Their shapes follow from those of the batch alone, and no value is read from the device.
        """


class InternVL:
    """InternVL 2.5 to 3.5 in transformers' format: square tiles, every one of the same number of tokens."""

    classes: tuple[str, ...] = ("InternVLForConditionalGeneration", "InternVLModel", "Qwen2Model")
    base_class: str = "InternVLModel"

    def tokens_per_image(self, config: Mapping[str, Any], side: int) -> int:
        """``image_seq_length``, whatever the side: a tile has one size."""
        return int(config.get("image_seq_length", 256))

    def image_processor(self, config: Mapping[str, Any], mllm: "MllmConfig") -> Any:
        """One tile, no dynamic tiling."""
        from transformers import GotOcr2ImageProcessorPil

        return GotOcr2ImageProcessorPil(
            size={"height": mllm.image_size, "width": mllm.image_size},
            image_mean=list(mllm.image_mean),
            image_std=list(mllm.image_std),
            crop_to_patches=False,
        )

    def inputs(self, config: Any, batch: "Batch") -> "dict[str, Tensor]":
        """Tiles ``[B R, 3, h, w]``."""
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values": batch.pixel_values.flatten(0, 1),
        }


class Qwen3VL:
    """Qwen3-VL: patches in the order of their merging, rotary positions in time, height and width, DeepStack."""

    classes: tuple[str, ...] = (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLModel",
        "Qwen3VLTextModel",
        "Qwen3VLVisionModel",
    )
    base_class: str = "Qwen3VLModel"

    def tokens_per_image(self, config: Mapping[str, Any], side: int) -> int:
        """One token for each block of merged patches."""
        vision = config["vision_config"]
        return int(side // (vision["patch_size"] * vision["spatial_merge_size"])) ** 2

    def image_processor(self, config: Mapping[str, Any], mllm: "MllmConfig") -> Any:
        """As many pixels as our tile has, at any aspect."""
        from transformers import Qwen2VLImageProcessorPil

        vision, pixels = config["vision_config"], mllm.image_size**2
        return Qwen2VLImageProcessorPil(
            size={"shortest_edge": pixels, "longest_edge": pixels},
            patch_size=vision["patch_size"],
            temporal_patch_size=vision["temporal_patch_size"],
            merge_size=vision["spatial_merge_size"],
            image_mean=list(mllm.image_mean),
            image_std=list(mllm.image_std),
        )

    def inputs(self, config: Any, batch: "Batch") -> "dict[str, Tensor]":
        """Patches and positions, see :mod:`lookalike.models.qwen3_vl`."""
        from lookalike.models.qwen3_vl import encoder_inputs

        return encoder_inputs(config, batch)


FAMILIES: dict[str, Family] = {"internvl": InternVL(), "qwen3_vl": Qwen3VL()}
"""By ``model_type`` of a ``config.json``."""


def family_of(model_type: str | None) -> Family:
    """The family of a multimodal model by the ``model_type`` of its configuration.

    Raises:
        ConfigError: one that nobody has taught us; the message lists the known ones.
    """
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise ConfigError(
            "no joint encoder of this family",
            value=model_type,
            fix=f"use one of {', '.join(FAMILIES)}, or add a Family to models/families.py",
        )
    return family
