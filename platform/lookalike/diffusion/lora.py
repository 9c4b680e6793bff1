"""LoRA on a pipeline's DiT: ours in peft's format, and whatever diffusers' FluxPipeline reads."""

from pathlib import Path
from typing import Any

from diffusers.loaders import FluxLoraLoaderMixin

from lookalike.errors import ConfigError
from lookalike.models.adapters import ADAPTER_NAME, is_lora, load_lora


class SubjectLoraLoaderMixin(FluxLoraLoaderMixin):
    """diffusers' loader without its text encoder; ``unload_lora_weights``, ``set_adapters``, … are diffusers' own."""

    _lora_loadable_modules = ("transformer",)
    text_encoder = None
    transformer: Any

    def load_lora_weights(self, source: Any, adapter_name: str = ADAPTER_NAME, **kwargs: Any) -> None:
        """Put a LoRA on the DiT.

        Args:
            source: a peft folder, read strictly (a bundle's ``transformer_lora``); anything else as diffusers reads it.
            adapter_name: several may be loaded; a bundle saves the one that is named ``default``.
            kwargs: diffusers'.

        Raises:
            ConfigError: there is a LoRA of this name already.
            InputError: a peft folder that does not fit the DiT.
        """
        if adapter_name in loras(self.transformer):
            raise ConfigError("a LoRA of this name is loaded", value=adapter_name, fix="call unload_lora_weights first")
        if isinstance(source, (str, Path)) and is_lora(Path(source)):
            load_lora(self.transformer, Path(source), adapter_name)
            self.transformer.requires_grad_(False)
        else:
            super().load_lora_weights(source, adapter_name=adapter_name, **kwargs)

    @classmethod
    def load_lora_into_text_encoder(cls, *args: Any, **kwargs: Any) -> None:
        """There is none: what a file holds for CLIP is left aside."""


def loras(transformer: Any) -> list[str]:
    """Names of the LoRAs that a DiT carries."""
    return list(getattr(transformer, "peft_config", {}))
