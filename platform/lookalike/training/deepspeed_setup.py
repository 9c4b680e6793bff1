"""Prepare a process for DeepSpeed: import it quickly, load its CPU collectives, join the process group."""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def prepare_process(device: torch.device) -> None:
    """Import DeepSpeed for ``device``, build its CPU collectives, and start it on Ray Train's process group."""
    prefer_own_ninja()
    deepspeed = import_deepspeed(device)
    if device.type == "cpu":
        load_operator()
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def prefer_own_ninja() -> None:
    """Put the ninja of the interpreter's environment first on PATH: DeepSpeed calls it by name.

    A ninja of another version, such as the system's, considers every file changed and compiles it again.
    """
    folder = str(Path(sys.executable).parent)
    if Path(folder, "ninja").exists() and shutil.which("ninja", path=os.environ["PATH"]) != f"{folder}/ninja":
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for ``device``, with the modules that it would import while it builds an engine.

    Its autotuner imports mlflow if that is installed, and ``torch.compile`` on functions of an optimizer imports a
    compiler, at the start of each rank. Both are hidden during the import.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    with _set(os.environ, "TORCHDYNAMO_DISABLE", "1"), _set(sys.modules, "mlflow", sys.modules.get("mlflow")):
        import deepspeed
        import deepspeed.runtime.zero.muon.muon_optimizer
        import deepspeed.runtime.zero.stage3
    return deepspeed


@contextmanager
def _set(values: MutableMapping[str, Any], name: str, value: Any) -> Iterator[None]:
    """Set ``values[name]`` to ``value`` within the context. A module that is None cannot be imported."""
    before = {name: values[name]} if name in values else {}
    values[name] = value
    try:
        yield
    finally:
        del values[name]
        values.update(before)


def load_operator() -> None:
    """Load DeepSpeed's shared-memory collectives; the first time they are compiled, into torch's extensions folder.

    PyTorch marks a running compilation by a file (``torch.utils.file_baton``); after a killed compilation every process
    would wait for that file to disappear. So processes take turns with a file lock, which the system releases when a
    process dies, and the process that holds the lock removes a leftover file.
    """
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(ShareMemCommBuilder.NAME, verbose=False))
    with (folder / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        ShareMemCommBuilder().load(verbose=False)
