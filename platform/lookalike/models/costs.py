"""Costs of a preset's model without its weights: parameters, tokens and FLOPs, counted on the meta device.

torch counts the FLOPs of the real modules as they run on tensors without storage (a multiply-add is two), attention
over all keys, masked or not. The DiT's count is linear in its blocks, so it is taken at depths (1, 1), (2, 1), (1, 2).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lookalike.models.batch import Batch
from lookalike.models.dit import Context, References
from lookalike.models.joint import encoder_inputs, import_model_classes
from lookalike.models.new_components import outline
from lookalike.models.presets import Preset
from lookalike.models.subject import Part, SubjectModel
from lookalike.models.vae import downsampling
from lookalike.process_wide import alone_in_process
from lookalike.scratch import scratch

_TEXT_ARGUMENTS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class Sample:
    """Numbers of tokens of one sample."""

    grid: tuple[int, int]
    """Rows and columns of the target's tokens."""
    reference_grid: tuple[int, int]
    """Rows and columns of one reference's tokens in the DiT."""
    references: int
    """Number of references."""
    tokens_per_image: int
    """Tokens of one reference in the MLLM."""
    tile: int
    """Side of a reference's tile in the MLLM, pixels."""
    text_tokens: int
    """The MLLM's other tokens: prompt and template."""

    @classmethod
    def of(
        cls,
        preset: Preset,
        references: int = 1,
        *,
        text_tokens: int = 64,
        height: int | None = None,
        width: int | None = None,
    ) -> "Sample":
        """Make a sample of ``preset``, by default at its own size; ``height`` and ``width`` are in pixels."""
        side = 2 ** len(preset.vae.config["block_out_channels"])  # pixels of a token: latents are packed 2 x 2
        target = (height or preset.height) // side, (width or preset.width) // side
        reference = (height or preset.references.height) // side, (width or preset.references.width) // side
        return cls(target, reference, references, preset.mllm.tokens_per_image, preset.mllm.image_size, text_tokens)

    @property
    def image(self) -> int:
        """Tokens of the target."""
        return self.grid[0] * self.grid[1]

    @property
    def context(self) -> int:
        """Tokens of the MLLM."""
        return self.references * self.tokens_per_image + self.text_tokens

    @property
    def reference(self) -> int:
        """Tokens of all references in the DiT."""
        return self.references * self.reference_grid[0] * self.reference_grid[1]

    def tokens(self, *, mllm: bool, references: bool) -> int:
        """Return the number of tokens that the DiT computes in a step with these conditions."""
        return self.image + mllm * self.context + references * self.reference


@alone_in_process()
def meta_model(preset: Preset, dtype: torch.dtype = torch.float32) -> SubjectModel:
    """Build the model of ``preset`` on the meta device, with its LoRA; what a base run trains is trainable."""
    import_model_classes()
    with scratch("outline") as folder, torch.device("meta"):
        model = SubjectModel.from_config(outline(preset, folder), preset.references, dtype)
        if preset.lora is not None:
            model.add_lora(preset.lora)
        if preset.mllm.lora is not None:
            model.add_mllm_lora(preset.mllm.lora)
    encoder: tuple[Part, ...] = () if preset.mllm.lora is None else ("mllm_lora",)
    model.set_trainable((*encoder, "aggregator", "transformer" if preset.lora is None else "transformer_lora"))
    return model.train()


@alone_in_process()
def meta_vae(preset: Preset) -> Any:
    """Build the VAE of ``preset`` on the meta device."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(**preset.vae.config).requires_grad_(False).eval()


def count_parameters(model: SubjectModel) -> dict[str, int]:
    """Count the parameters by part: ``mllm`` (no language head), ``aggregator``, its ``bridge``, ``transformer``, its
    ``lora``, and all ``trainable`` ones."""
    branches: Any = model.aggregator.branches.values()
    bridge = {id(p) for branch in branches for part in (branch.norm, branch.mlp) for p in part.parameters()}
    counts = dict.fromkeys(("mllm", "aggregator", "bridge", "transformer", "lora", "trainable"), 0)
    for name, parameter in model.named_parameters():
        part = "bridge" if id(parameter) in bridge else "lora" if ".lora_" in name else name.partition(".")[0]
        counts[part] += parameter.numel()
        counts["trainable"] += parameter.numel() * parameter.requires_grad
    return counts


def mllm_flops(model: SubjectModel, sample: Sample, *, backward: bool = False) -> int:
    """Count the FLOPs of vision tower and language model on one sample; with ``backward`` those of a training step of
    the trainable parts of the language model."""
    mllm: Any = model.mllm
    inputs = encoder_inputs(mllm.config, _batch(sample))
    width = mllm.config.get_text_config().hidden_size
    embeddings = torch.empty(1, sample.context, width, device="meta", dtype=mllm.dtype)
    length = sample.context
    text = {"attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")}  # used as it is
    if "position_ids" in inputs:
        text["position_ids"] = inputs["position_ids"]

    def read() -> Tensor:
        return mllm.language_model(inputs_embeds=embeddings, use_cache=False, **text).last_hidden_state  # type: ignore[no-any-return]

    vision = {name: value for name, value in inputs.items() if name not in _TEXT_ARGUMENTS}
    return _flops(lambda: mllm.get_image_features(**vision)) + _flops(read, backward)


def aggregator_flops(model: SubjectModel, sample: Sample, *, backward: bool = False) -> int:
    """Count the FLOPs of aggregation and bridge on one sample; with ``backward`` those of a training step."""
    return _flops(lambda: context_of(model, sample).tokens, backward)


def denoising_flops(
    model: SubjectModel, sample: Sample, *, mllm: bool, references: bool, backward: bool = False
) -> int:
    """Count the FLOPs of the DiT on one sample with these conditions; with ``backward`` those of a training step.

    The second forward pass of activation checkpointing is not counted.
    """
    transformer: Any = model.transformer
    context = None
    if mllm:
        width = transformer.config.joint_attention_dim
        tokens = torch.empty(1, sample.context, width, device="meta", requires_grad=backward)
        context = Context(tokens, torch.ones(1, sample.context, dtype=torch.bool, device="meta"))
    return by_depth(transformer, lambda: _flops(lambda: denoise(model, sample, context, references), backward))


def vae_flops(vae: Any, height: int, width: int) -> tuple[int, int]:
    """Count the FLOPs of encoding and of decoding one image of ``height`` x ``width`` pixels."""
    factor = downsampling(vae)
    image = torch.empty(1, 3, height, width, device="meta")
    latents = torch.empty(1, vae.config.latent_channels, height // factor, width // factor, device="meta")
    return _flops(lambda: vae.encode(image)), _flops(lambda: vae.decode(latents))


def context_of(model: SubjectModel, sample: Sample, batch: int = 1) -> Context:
    """Run the aggregator on empty hidden states of the right shapes, on the device and in the dtype of its weights."""
    like = next(model.aggregator.parameters())
    config = model.aggregator.config
    layers = [
        torch.empty(batch, sample.context, config.mllm_width, dtype=like.dtype, device=like.device)
        for _ in range(config.num_layers)
    ]
    mask = torch.ones(batch, sample.context, dtype=torch.bool, device=like.device)
    image_mask = torch.arange(sample.context, device=like.device) < sample.references * sample.tokens_per_image
    tokens = model.aggregator(layers, mask, image_mask.expand(batch, -1), sample.references * sample.tokens_per_image)
    return Context(tokens, mask)


def denoise(model: SubjectModel, sample: Sample, context: Context | None, references: bool, batch: int = 1) -> Tensor:
    """Run the DiT once on empty tokens of the right shapes."""
    transformer: Any = model.transformer
    like = next(transformer.parameters())
    channels = transformer.config.in_channels

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=like.dtype, device=like.device)

    given = None
    if references:
        latents = empty(batch, sample.references, sample.reference // sample.references, channels)
        seen = torch.ones(batch, sample.references, dtype=torch.bool, device=like.device)
        given = References(latents, seen, sample.reference_grid)
    return model.denoise(empty(batch, sample.image, channels), empty(batch), context, given, sample.grid)


def by_depth(transformer: Any, measure: Callable[[], int]) -> int:
    """Extrapolate ``measure`` of a FluxTransformer2DModel from a few blocks; it must be linear in their numbers."""
    double, single = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)

    def at(doubles: int, singles: int) -> int:
        with _truncated(transformer, doubles, singles):
            return measure()

    if double < 2 or single < 2:
        return measure()
    base = at(1, 1)
    return base + (double - 1) * (at(2, 1) - base) + (single - 1) * (at(1, 2) - base)


@contextmanager
def _truncated(transformer: Any, doubles: int, singles: int) -> Iterator[None]:
    whole = transformer.transformer_blocks, transformer.single_transformer_blocks
    transformer.transformer_blocks = whole[0][:doubles]
    transformer.single_transformer_blocks = whole[1][:singles]
    try:
        yield
    finally:
        transformer.transformer_blocks, transformer.single_transformer_blocks = whole


def _flops(compute: Callable[[], Any], backward: bool = False) -> int:
    """Count the FLOPs of ``compute``; with ``backward`` also those of the gradients of the tensor that it returns."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        result = compute()
        if backward:
            result.sum().backward()
    return int(counter.get_total_flops())


def _batch(sample: Sample) -> Batch:
    """Make one sample's tensors on the meta device."""
    ids = torch.zeros(1, sample.context, dtype=torch.long, device="meta")
    return Batch(
        input_ids=ids,
        attention_mask=ids.bool(),
        image_mask=ids.bool(),
        tiles=torch.empty(1, sample.references, 3, sample.tile, sample.tile, dtype=torch.uint8, device="meta"),
        normalisation=torch.empty(1, 2, 3, device="meta"),
        references=ids,
        reference_mask=torch.ones(1, sample.references, dtype=torch.bool, device="meta"),
    )
