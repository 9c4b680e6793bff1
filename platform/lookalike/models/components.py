"""Names of a model's component folders, and what their configurations say. No torch: drivers and data workers use it.

The folders have the layout of a pipeline of diffusers: ``mllm/`` is saved by transformers, the others by diffusers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lookalike.documents import decoding, parse_object
from lookalike.errors import InputError, first_line

COMPONENTS = ("mllm", "vae", "transformer", "scheduler", "aggregator")
PATCH = 2  # latents are packed 2 x 2 into tokens
REPAIR = "download or export the bundle again"
"""The fix in errors about damaged files of a model."""
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""For ``from_pretrained`` of transformers' Auto classes: without it they ask on standard input whether to run a
repository's code, and take ``y`` for an answer."""


def component_config(folder: Path, component: str, *names: str, file: str = "config.json") -> dict[str, Any]:
    """Read the configuration of a component below ``folder``: a JSON object that has the keys ``names``.

    Raises InputError if the file is missing, is not JSON, or lacks a key.
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


def hub_snapshot(repository: str, names: Iterable[str], subfolder: str | None, *, fix: str, **options: Any) -> Path:
    """Download the files ``names``, which may have wildcards, of ``subfolder`` or the root of a repository on the Hub.

    Returns the local folder of the repository; ``options`` are those of ``snapshot_download``. Raises InputError if the
    Hub has no such repository or does not answer.
    """
    from huggingface_hub import snapshot_download

    patterns = [f"{subfolder}/{name}" if subfolder else name for name in names]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, **options))
    except (OSError, ValueError) as error:  # huggingface_hub's and the network's
        what = f"neither a local folder nor a Hub id that can be reached ({first_line(error) or type(error).__name__})"
        raise InputError(what, value=repository, fix=fix) from error
