"""The whole model in one module for one DeepSpeed engine: joint encoder, aggregator with bridge, DiT.

Every part runs through its own ``__call__``, and every rank runs the same parts for any batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookalike.documents import decoding
from lookalike.errors import ConfigError
from lookalike.models.adapters import inject_lora, inject_mllm_lora
from lookalike.models.aggregate import LayerAggregator
from lookalike.models.batch import Batch
from lookalike.models.components import NO_CODE, REPAIR
from lookalike.models.dit import Context, References, prepare_references, velocity
from lookalike.models.joint import hidden_states
from lookalike.models.presets import LoraConfig, ReferenceConfig
from lookalike.process_wide import alone_in_process

Part = Literal["mllm", "mllm_lora", "aggregator", "transformer", "transformer_lora"]


class SubjectModel(nn.Module):
    """Denoises a target from a prompt and references.

    Args:
        mllm: transformers multimodal base model (a :class:`~lookalike.models.joint.JointEncoder`), frozen at first.
        aggregator: layer aggregation and bridge.
        transformer: diffusers FluxTransformer2DModel.
        references: positions of reference tokens, and what they attend to.
    """

    def __init__(
        self, mllm: nn.Module, aggregator: LayerAggregator, transformer: nn.Module, references: ReferenceConfig
    ) -> None:
        super().__init__()
        self.mllm = mllm
        self.aggregator = aggregator
        self.transformer = transformer
        self.references = references
        self._mllm_learns = False
        self.set_trainable(())

    @classmethod
    @alone_in_process()
    def from_config(cls, folder: Path, references: ReferenceConfig, dtype: torch.dtype | None = None) -> "SubjectModel":
        """Build the architecture of the component folders in ``folder`` without weights, by default in float32.

        Reads ``config.json`` files only. Works inside ``deepspeed.zero.Init`` and under ``torch.device("meta")``, after
        :func:`~lookalike.models.joint.import_model_classes`.
        """
        from diffusers import FluxTransformer2DModel
        from transformers import AutoConfig, AutoModel
        from transformers.initialization import no_init_weights
        from transformers.modeling_utils import local_torch_dtype

        with decoding("a configuration of transformers", str(folder / "mllm"), fix=REPAIR):
            mllm_config = AutoConfig.from_pretrained(folder / "mllm", **NO_CODE)
        dtype = dtype or torch.float32
        with decoding("a loadable bundle", str(folder), fix=REPAIR), no_init_weights(), local_torch_dtype(dtype):
            mllm = AutoModel.from_config(mllm_config, dtype=dtype, attn_implementation="sdpa", **NO_CODE)
            aggregator = LayerAggregator.from_config(LayerAggregator.load_config(folder / "aggregator"))
            config = FluxTransformer2DModel.load_config(folder / "transformer")
            transformer = FluxTransformer2DModel.from_config(config)
        return cls(mllm, aggregator, transformer, references)

    def add_lora(self, lora: LoraConfig) -> None:
        """Inject a LoRA into the DiT. Call it after the weights are loaded, since peft renames layers."""
        inject_lora(self.transformer, lora)
        self.set_trainable(())

    def add_mllm_lora(self, lora: LoraConfig) -> None:
        """Inject a LoRA into the MLLM's language model, also after the weights are loaded."""
        inject_mllm_lora(self.mllm, lora)
        self.set_trainable(())

    def set_trainable(self, parts: Sequence[Part]) -> dict[str, nn.Parameter]:
        """Let exactly these parts learn; returns their parameters by name, in a fixed order.

        ``transformer`` is the DiT without its LoRA, ``mllm`` the MLLM without its LoRA. Raises ConfigError for the LoRA
        of a part that has none.
        """
        chosen = {}
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0] + ("_lora" if ".lora_" in name else "")
            parameter.requires_grad_(part in parts)
            if part in parts:
                chosen[name] = parameter
        for part in parts:
            whole = part.removesuffix("_lora")
            if part != whole and not any(name.startswith(f"{whole}.") and ".lora_" in name for name in chosen):
                raise ConfigError("the model has no LoRA to train", value=part, fix="add it first")
        self._mllm_learns = "mllm" in parts or "mllm_lora" in parts
        self.train(self.training)
        return chosen

    def train(self, mode: bool = True) -> "SubjectModel":
        """Set training mode as ``nn.Module.train``; a frozen joint encoder stays in evaluation mode."""
        super().train(mode)
        if not self._mllm_learns:
            self.mllm.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of DiT and aggregator in the backward pass."""
        part: Any
        for part in (self.transformer, self.aggregator):
            part.enable_gradient_checkpointing()

    def encode(self, batch: Batch, keep: Tensor | None = None) -> Context:
        """Compute the context tokens of a batch; those of a row whose ``keep`` (bool ``[B]``) is false are masked."""
        return encode_context(self.mllm, self.aggregator, batch, keep=keep, mllm_learns=self._mllm_learns)

    def denoise(
        self,
        noisy_latents: Tensor,
        sigma: Tensor,
        context: Context | None,
        references: References | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """Predict the velocity, noise − clean: float ``[B, T, C]``.

        Args:
            noisy_latents: float ``[B, T, C]``, packed.
            sigma: float ``[B]`` in [0, 1].
            context: the MLLM's tokens; None if they are not used.
            references: clean latents; None if they are not used. Keys and values are computed from them if the model
                caches them.
            grid: the target's rows and columns of tokens; their product is T.
        """
        config, prepared = self.references, None
        if references is not None:
            prepared = prepare_references(self.transformer, references, grid, config)
        return velocity(self.transformer, noisy_latents, sigma, grid, context, prepared, config.position, guidance=1.0)

    def forward(
        self,
        batch: Batch,
        noisy_latents: Tensor,
        sigma: Tensor,
        references: References | None,
        grid: tuple[int, int],
        *,
        use_mllm: bool = True,
        mllm_keep: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity as :meth:`denoise`, on the tokens that the MLLM makes of ``batch``.

        ``use_mllm``, and whether there are ``references``, must be the same on every rank. The MLLM tokens of a row
        whose ``mllm_keep`` (bool ``[B]``) is false are masked (dropout).
        """
        context = self.encode(batch, mllm_keep) if use_mllm else None
        return self.denoise(noisy_latents, sigma, context, references, grid)


def encode_context(
    mllm: Any, aggregator: Callable[..., Tensor], batch: Batch, *, keep: Tensor | None = None, mllm_learns: bool = False
) -> Context:
    """Compute the DiT's context tokens: joint encoder, aggregation and bridge, once for all noise levels.

    Args:
        mllm: a :class:`~lookalike.models.joint.JointEncoder`.
        aggregator: a :class:`~lookalike.models.aggregate.LayerAggregator`.
        batch: B samples.
        keep: bool ``[B]``; all tokens of a row that is false are masked (condition dropout).
        mllm_learns: whether gradients flow into the joint encoder.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and mllm_learns):
        layers = hidden_states(mllm, batch)
    tokens = aggregator(layers, batch.attention_mask, batch.image_mask, batch.image_tokens_per_row)
    return Context(tokens, batch.attention_mask if keep is None else batch.attention_mask & keep[:, None])
