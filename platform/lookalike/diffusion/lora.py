"""LoRA on a pipeline's DiT: read strictly from every format that Flux users have, and exported in diffusers' own."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import FluxLoraLoaderMixin
from torch.nn import ModuleDict

from lookalike.errors import ConfigError, InputError
from lookalike.models.adapter_files import DIFFUSERS_WEIGHTS, read_adapter
from lookalike.models.adapter_state import adapter_state, check_not_wrapped, effective_loras, is_fused, loras
from lookalike.models.adapter_tensors import PEFT_CONFIG, PEFT_WEIGHTS
from lookalike.models.adapters import ADAPTER_NAME, load_adapter, swap_adapter
from lookalike.models.components import hub_snapshot

log = logging.getLogger(__name__)

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_IGNORED = ("low_cpu_mem_usage", "use_safetensors", "proxies")


class _SaveLora:
    """``pipe.save_lora_weights(folder)`` saves the pipeline's LoRA; on the class it is diffusers' own method."""

    def __get__(self, pipe: Any, owner: Any) -> Any:
        if pipe is not None:
            return pipe.save_own_lora
        return FluxLoraLoaderMixin.save_lora_weights.__func__.__get__(owner)


class SubjectLoraLoaderMixin(FluxLoraLoaderMixin):
    """diffusers' loader without its text encoder; ``unload_lora_weights``, ``set_adapters``, … are diffusers' own."""

    _lora_loadable_modules = ("transformer",)
    text_encoder = None
    transformer: Any
    save_lora_weights = _SaveLora()

    def load_lora_weights(
        self,
        source: str | Path | Mapping[str, Any],
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Put a LoRA on the DiT, exactly, and make it the active one; the pipeline stays as it was if that fails.

        Args:
            source: a folder or a ``.safetensors`` file of peft (a bundle's ``transformer_lora``), diffusers, kohya,
                XLabs or Black Forest Labs, tensors by name, or a Hub id.
            adapter_name: by default ``default``, which is the one that a bundle saves; several may be loaded.
            hotswap: replace the LoRA of this name, which keeps its layers (for compiled models).
            weight_name: file in the folder or repository, if it holds several.
            subfolder: folder in the folder or repository.
            kwargs: diffusers' for a Hub id (``revision``, ``token``, ``cache_dir``, …).

        Raises:
            ConfigError: a LoRA of this name is loaded, or one is fused.
            InputError: no LoRA there, a pickle, or one that does not fit the DiT or cannot be applied exactly.
        """
        name = ADAPTER_NAME if adapter_name is None else adapter_name
        self._check_name(name, hotswap)
        if unknown := set(kwargs) - {*_HUB, *_IGNORED}:
            raise TypeError(f"load_lora_weights got an unexpected keyword argument {min(unknown)!r}")
        if kwargs.get("use_safetensors") is False:
            fix = "drop use_safetensors=False, and name a .safetensors file"
            raise InputError("a pickle can run any code and is not read", fix=fix)
        hub = {key: kwargs[key] for key in _HUB if kwargs.get(key) is not None}
        local = source if isinstance(source, Mapping) else _locate(source, weight_name, subfolder, hub)
        file = read_adapter(local, self.transformer, weight_name)
        if hotswap:
            count = swap_adapter(self.transformer, file, name)
        else:
            offloaded = self._optionally_disable_offloading(self)
            try:
                count = load_adapter(self.transformer, file, name)
            finally:
                _offload_again(self, offloaded)
        self.transformer.requires_grad_(False)
        log.info("LoRA %s: %d tensors, all of %s", name, count, file.origin)

    def set_adapters(self, adapter_names: Any, adapter_weights: Any = None) -> None:
        """As in diffusers. Raises ConfigError while a LoRA is fused: it could not be unfused."""
        self._check_not_fused()
        super().set_adapters(adapter_names, adapter_weights)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """As in diffusers. Raises ConfigError while a LoRA is fused: it would stay in the weights."""
        self._check_not_fused()
        super().delete_adapters(adapter_names)

    def unfuse_lora(self, components: Any = ("transformer",), **kwargs: Any) -> None:
        """As in diffusers, for the DiT."""
        super().unfuse_lora(components=list(components), **kwargs)

    def save_own_lora(
        self,
        save_directory: str | Path,
        transformer_lora_layers: Mapping[str, Any] | None = None,
        *,
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a LoRA of the pipeline in diffusers' format, with its weight of ``set_adapters``.

        ``FluxPipeline.load_lora_weights`` and ``FluxTransformer2DModel.load_lora_adapter`` read it and compute the
        same. Its scale is in the tensors, so a program that does not read the file's metadata computes the same too.

        Args:
            save_directory: receives ``pytorch_lora_weights.safetensors`` (or ``weight_name``).
            transformer_lora_layers: as in diffusers; by default those of the pipeline's LoRA.
            adapter_name: which one; by default the only one that is loaded.
            kwargs: diffusers' (``weight_name``, ``is_main_process``, …).

        Raises ConfigError if no LoRA is loaded, or several and none is named.
        """
        save = type(self).save_lora_weights
        if transformer_lora_layers is None:
            file = adapter_state(self.transformer, self._one_lora(adapter_name), alpha_is_rank=True)
            transformer_lora_layers = {name: tensor.cpu().contiguous() for name, tensor in file.tensors.items()}
            kwargs["transformer_lora_adapter_metadata"] = file.settings
        save(str(save_directory), transformer_lora_layers=dict(transformer_lora_layers), **kwargs)

    def _one_lora(self, name: str | None) -> str:
        check_not_wrapped(self.transformer)
        names = loras(self.transformer)
        if name is not None and name not in names:
            raise ConfigError(f"no LoRA of this name is loaded; loaded are {names}", value=name, fix="name one of them")
        if not names:
            raise ConfigError("no LoRA is loaded", fix="call load_lora_weights first")
        chosen = [name] if name is not None else (names if len(names) == 1 else effective_loras(self.transformer))
        if len(chosen) != 1:
            raise ConfigError("several LoRAs are loaded", value=names, fix="choose one with adapter_name")
        return chosen[0]

    def _check_name(self, name: str, hotswap: bool) -> None:
        check_not_wrapped(self.transformer)
        names = loras(self.transformer)
        if not isinstance(name, str) or not name or "." in name or hasattr(ModuleDict, name):
            raise ConfigError(
                "a LoRA's name must be text without dots that no method of a torch module has",
                value=name,
                fix="use another adapter_name",
            )
        if name in names and not hotswap:
            raise ConfigError(
                "a LoRA of this name is loaded",
                value=name,
                fix="call unload_lora_weights first, use another adapter_name, or hotswap=True",
            )
        if hotswap and name not in names:
            raise ConfigError(
                f"hotswap found no LoRA of this name; loaded are {names}", value=name, fix="load it without hotswap"
            )
        self._check_not_fused()

    def _check_not_fused(self) -> None:
        if is_fused(self.transformer):
            raise ConfigError(
                "a LoRA is fused into the DiT's weights",
                value=loras(self.transformer),
                fix="call unfuse_lora first, or unload_lora_weights to keep the fused weights",
            )


def _offload_again(pipe: Any, offloaded: tuple[bool, ...]) -> None:
    model, sequential, *_ = offloaded
    if model:
        pipe.enable_model_cpu_offload(device=pipe._offload_device)
    elif sequential:
        pipe.enable_sequential_cpu_offload(device=pipe._offload_device)


def _locate(source: str | Path, weight_name: str | None, subfolder: str | None, hub: dict[str, Any]) -> Path:
    """Return a local folder or file, after downloading what a Hub id names."""
    local = Path(source)
    if not local.exists():
        if isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise InputError(
                "the LoRA is neither a file, nor a folder, nor a Hub id", value=str(source), fix="check the path"
            )
        names = [PEFT_CONFIG, *([weight_name] if weight_name else [PEFT_WEIGHTS, DIFFUSERS_WEIGHTS])]
        local = hub_snapshot(source, names, subfolder, fix="check the path or the Hub id", **hub)
    return local / subfolder if subfolder else local
