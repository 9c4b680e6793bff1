"""Save a pipeline as a bundle that generates the same images."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from lookalike.bundles.manifest import ADAPTER, MANIFEST, write_manifest
from lookalike.errors import ConfigError
from lookalike.models.adapter_files import AdapterFile
from lookalike.models.adapter_state import adapter_state, check_not_wrapped, effective_loras, without_loras
from lookalike.models.adapters import ADAPTER_NAME, lora_layers, write_adapter
from lookalike.models.components import COMPONENTS

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "*.jinja",
    "preprocessor_config.json",
)


def save_bundle(pipe: Any, folder: Path, **kwargs: Any) -> None:
    """Write ``pipe`` (a SubjectPipeline) to ``folder``: its ``save_pretrained``.

    Raises ConfigError for several active LoRAs or one of another name than ``default``, and for offloaded weights.
    """
    transformer, preprocessor = pipe.transformer, pipe.preprocessor
    for name in ("mllm", "aggregator", "transformer", "vae"):
        if any(parameter.is_meta for parameter in getattr(pipe, name).parameters()):
            raise ConfigError("the weights of a component are offloaded", value=name, fix="call remove_all_hooks first")
    check_not_wrapped(transformer)
    if kwargs.get("safe_serialization") is False:
        raise ConfigError("a bundle cannot be saved as pickles", fix="drop safe_serialization=False")
    active = effective_loras(transformer)
    if active not in ([], [ADAPTER_NAME]):
        raise ConfigError(
            f"a bundle holds one LoRA, named {ADAPTER_NAME}",
            value=active,
            fix="call fuse_lora first, which adds all that are active to the weights that are saved",
        )
    adapter = adapter_state(transformer, ADAPTER_NAME) if active else None
    parts = {name: getattr(pipe, name) for name in COMPONENTS}
    if list(lora_layers(transformer)):  # also those that remain after all LoRAs were deleted
        parts["transformer"] = without_loras(transformer)
    plain = type(pipe)(**parts, preprocessor=preprocessor)
    if not (folder / MANIFEST).is_file():
        _write(plain, adapter, folder, **kwargs)
        return
    # the files of the bundle to replace may be mapped into memory: they may be those of this pipeline
    with tempfile.TemporaryDirectory(prefix=".lookalike-save-", dir=folder.parent) as name:
        fresh = Path(name)
        _write(plain, adapter, fresh, **kwargs)
        (folder / MANIFEST).unlink()
        for part in (ADAPTER, *COMPONENTS):
            shutil.rmtree(folder / part, ignore_errors=True)
        for item in sorted(fresh.iterdir(), key=lambda item: item.name == MANIFEST):  # the manifest last
            item.replace(folder / item.name)


def _write(pipe: Any, adapter: AdapterFile | None, folder: Path, **kwargs: Any) -> None:
    DiffusionPipeline.save_pretrained(pipe, str(folder), **kwargs)
    if adapter is not None:
        write_adapter(folder / ADAPTER, adapter.settings, adapter.tensors)
    for pattern in _TOKENIZER_FILES:
        for file in pipe.preprocessor.tokenizer_file.parent.glob(pattern):
            shutil.copyfile(file, folder / "mllm" / file.name)
    write_manifest(folder, pipe.preprocessor.preset)
