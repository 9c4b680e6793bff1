"""Joint encoding: a multimodal model of transformers reads prompt and references as one sequence."""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from lookalike.models.aggregators import AGGREGATORS
from lookalike.models.batch import Batch
from lookalike.models.families import FAMILIES, family_of


class JointEncoder(Protocol):
    """A multimodal base model (transformers' ``InternVLModel``, ``Qwen3VLModel``), without language head."""

    config: Any

    def __call__(self, *, output_hidden_states: bool, use_cache: bool, return_dict: bool, **inputs: Tensor) -> Any:
        """Return an output whose ``hidden_states`` are the embedding and every block's output, ``[B, L, C]`` each.

        ``inputs`` come from the model's :class:`~lookalike.models.families.Family`.
        """


def num_layers(config: Any) -> int:
    """Return the number of hidden states of a multimodal model: the embedding and one for each block."""
    return int(config.get_text_config().num_hidden_layers) + 1


def hidden_states(encoder: JointEncoder, batch: Batch) -> Sequence[Tensor]:
    """Compute all hidden states of ``batch``: ``num_layers`` tensors ``[B, L, C]``.

    As in transformers, the last one is after the model's final norm, the others are before it (and in Qwen3-VL
    before DeepStack adds its features to the image tokens, which the next one contains). Absent
    references keep their placeholders behind the text with zero pixels: causal attention never shows them to a real
    token, and every rank runs the vision tower.
    """
    inputs = encoder_inputs(encoder.config, batch)
    output = encoder(**inputs, output_hidden_states=True, use_cache=False, return_dict=True)
    return tuple(output.hidden_states)


def encoder_inputs(config: Any, batch: Batch) -> dict[str, Tensor]:
    """Make the inputs of the base model of ``config`` from ``batch``."""
    return family_of(config.model_type).inputs(config, batch)


def import_model_classes() -> None:
    """Import every class that building a model needs.

    Call it before entering ``deepspeed.zero.Init``, which patches torch's factories so that lazy imports fail.
    """
    lazy = {
        "transformers": ("AutoConfig", "AutoModel", *(name for family in FAMILIES.values() for name in family.classes)),
        "transformers.vision_utils": (),
        "diffusers": ("FluxTransformer2DModel", "AutoencoderKL", "FlowMatchEulerDiscreteScheduler"),
        "transformers.initialization": ("no_init_weights",),
        "transformers.modeling_utils": ("local_torch_dtype",),
        "transformers.conversion_mapping": ("get_model_conversion_mapping",),
        "lookalike.models.subject": ("SubjectModel",),
        "peft": ("LoraConfig", "inject_adapter_in_model"),
        "torch._dynamo": (),
    }
    for module, names in lazy.items():
        loaded = importlib.import_module(module)
        for name in names:
            getattr(loaded, name)
    for aggregator in AGGREGATORS.values():
        aggregator.pooling_class()
