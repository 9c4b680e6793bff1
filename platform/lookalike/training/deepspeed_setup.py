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
    """Import DeepSpeed for ``device`` and join the process group that Ray Train made."""
    prefer_own_ninja()
    deepspeed = import_deepspeed(device)
    if device.type == "cpu":
        load_operator()
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def prefer_own_ninja() -> None:
    """Put the ninja that lies beside the interpreter first on PATH: DeepSpeed calls it by name.

    One of another version, such as the system's, takes every file for changed and compiles it again.
    """
    folder = str(Path(sys.executable).parent)
    if Path(folder, "ninja").exists() and shutil.which("ninja", path=os.environ["PATH"]) != f"{folder}/ninja":
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told its accelerator, with what it would import while it builds an engine, but not what nobody needs.

    Its autotuner imports mlflow where that is installed, and ``torch.compile`` on functions of an optimizer imports a
    compiler, at the start of each rank. Both are hidden meanwhile.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    with _set(os.environ, "TORCHDYNAMO_DISABLE", "1"), _set(sys.modules, "mlflow", sys.modules.get("mlflow")):
        import deepspeed
        import deepspeed.runtime.zero.muon.muon_optimizer
        import deepspeed.runtime.zero.stage3
    return deepspeed


@contextmanager
def _set(values: MutableMapping[str, Any], name: str, value: Any) -> Iterator[None]:
    """``values[name]`` is ``value`` for a while. A module that is None cannot be imported."""
    known, before = name in values, values.get(name)
    values[name] = value
    try:
        yield
    finally:
        if known:
            values[name] = before
        else:
            del values[name]


def load_operator() -> None:
    """Load DeepSpeed's shared-memory collectives; the first time they are compiled, into torch's extensions folder.

    torch marks a compilation by a file that is there until it ends (``torch.utils.file_baton``): after a killed one
    everybody would wait for ever. So processes take turns by a lock that the system takes back from the dead, and a
    mark that is there at one's turn is nobody's.
    """
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(ShareMemCommBuilder.NAME, verbose=False))
    with (folder / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        ShareMemCommBuilder().load(verbose=False)
