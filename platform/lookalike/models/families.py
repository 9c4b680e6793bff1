"""The differences between families of multimodal models; no other module distinguishes them.

Light at import: data workers need the number of tokens of an image.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from lookalike.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from lookalike.models.batch import Batch
    from lookalike.models.presets import MllmConfig


class Family(Protocol):
    """A family of multimodal models: its classes, the tokens of an image, and the inputs of a forward pass."""

    classes: tuple[str, ...]
    """Classes of transformers that building a model imports."""
    base_class: str
    """The class without language head, as ``model_index.json`` names it."""

    def tokens_per_image(self, config: Mapping[str, Any], side: int) -> int:
        """Return the number of placeholders of a square image of ``side`` pixels for a ``config.json``."""

    def image_processor(self, config: Mapping[str, Any], mllm: "MllmConfig") -> Any:
        """Make transformers' image processor with settings that give our result for a square image."""

    def inputs(self, config: Any, batch: "Batch") -> "dict[str, Tensor]":
        """Make the arguments of the base model's ``forward`` for a batch; ``config`` is the model's.

        Their shapes depend on the shapes of the batch only, and no value is copied from the device.
        """


class InternVL:
    """InternVL 2.5 to 3.5 in transformers' format: square tiles with a fixed number of tokens."""

    classes: tuple[str, ...] = ("InternVLForConditionalGeneration", "InternVLModel", "Qwen2Model")
    base_class: str = "InternVLModel"

    def tokens_per_image(self, config: Mapping[str, Any], side: int) -> int:
        """Return ``image_seq_length`` for any side: a tile has one size."""
        return int(config.get("image_seq_length", 256))

    def image_processor(self, config: Mapping[str, Any], mllm: "MllmConfig") -> Any:
        """Make a processor for one tile, without dynamic tiling."""
        from transformers import GotOcr2ImageProcessorPil

        return GotOcr2ImageProcessorPil(
            size={"height": mllm.image_size, "width": mllm.image_size},
            image_mean=list(mllm.image_mean),
            image_std=list(mllm.image_std),
            crop_to_patches=False,
        )

    def inputs(self, config: Any, batch: "Batch") -> "dict[str, Tensor]":
        """Flatten the tiles to ``[B R, 3, h, w]``."""
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values": batch.pixel_values.flatten(0, 1),
        }


class Qwen3VL:
    """Qwen3-VL: patches in merging order, rotary positions in time, height and width, DeepStack."""

    classes: tuple[str, ...] = (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLModel",
        "Qwen3VLTextModel",
        "Qwen3VLVisionModel",
    )
    base_class: str = "Qwen3VLModel"

    def tokens_per_image(self, config: Mapping[str, Any], side: int) -> int:
        """Return the number of blocks of merged patches."""
        vision = config["vision_config"]
        return int(side // (vision["patch_size"] * vision["spatial_merge_size"])) ** 2

    def image_processor(self, config: Mapping[str, Any], mllm: "MllmConfig") -> Any:
        """Make a processor that keeps the number of pixels of our tile at any aspect."""
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
        """Compute patches and positions, see :mod:`lookalike.models.qwen3_vl`."""
        from lookalike.models.qwen3_vl import encoder_inputs

        return encoder_inputs(config, batch)


FAMILIES: dict[str, Family] = {"internvl": InternVL(), "qwen3_vl": Qwen3VL()}
"""By ``model_type`` of a ``config.json``; a new family is a class and one line here."""


def family_of(model_type: str | None) -> Family:
    """Return the family of a multimodal model by the ``model_type`` of its configuration.

    Raises ConfigError if the family is not supported; the message lists the known ones.
    """
    if model_type not in FAMILIES:
        fix = f"use one of {', '.join(FAMILIES)}, or add a Family to models/families.py"
        raise ConfigError("this family of multimodal models is not supported", value=model_type, fix=fix)
    return FAMILIES[model_type]
