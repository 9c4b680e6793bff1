"""Names of a model's component folders, and what their configurations say. No torch: drivers and data workers use it.

The folders have the layout of a pipeline of diffusers: ``mllm/`` is saved by transformers, the others by diffusers.
"""

from pathlib import Path
from typing import Any

from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError

COMPONENTS = ("mllm", "vae", "transformer", "scheduler", "aggregator")
PATCH = 2  # latents are packed 2 x 2 into tokens
REPAIR = "download or export the bundle again"
"""The fix in errors about damaged files of a model."""
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""For ``from_pretrained`` of transformers' Auto classes: without it they ask on standard input whether to run a
repository's code, and take ``y`` for an answer."""


def component_config(folder: Path, component: str, *names: str, file: str = "config.json") -> dict[str, Any]:
    """Read the configuration of a component below ``folder``: a JSON object that has the keys ``names``.

    Raises:
        InputError: the file is missing, is not JSON, or lacks a key.
    """
    path = folder / component / file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"incomplete bundle: cannot read {component}/{file}: {error.strerror}", value=str(path), fix=REPAIR
        ) from None
    return parse_object(data, str(path), *names, fix=REPAIR)


def token_shape(folder: Path) -> tuple[int, int]:
    """(side in pixels, channels) of one image token of the model in ``folder``; reads the VAE's configuration only."""
    config = component_config(folder, "vae", "block_out_channels", "latent_channels")
    with decoding("a configuration of a VAE", str(folder / "vae" / "config.json"), fix=REPAIR):
        return int(2 ** (len(config["block_out_channels"]) - 1)) * PATCH, int(config["latent_channels"]) * PATCH**2
