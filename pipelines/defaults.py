"""The environment that jobs give to libraries, unless the user has set it otherwise."""

import os

from lookalike.scratch import kept_folder

OPT_OUT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # read when onnxruntime is imported, which diffusers does
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Libraries that report their use to their makers; a cluster that a job joins needs them in its own environment."""


def set_defaults() -> None:
    """Opt out of telemetry, and keep PyTorch's compiled kernels in the job's temporary folder.

    Raises:
        InputError: the temporary folder cannot be created.
    """
    for name, value in OPT_OUT.items():
        os.environ.setdefault(name, value)
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # made at import, by DeepSpeed too
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept_folder("inductor"))
