"""Check that a C++ compiler and ninja are installed, and compile DeepSpeed's CPU operator.

``make setup`` runs this. DeepSpeed compiles its shared-memory communication at its first use (about a minute, cached in
the user's folder of torch extensions), which would otherwise delay the first training run.
"""

import os
import shutil
import sys
from pathlib import Path


def main() -> int:
    """Return 0 if training can run on this machine, else 1."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the venv's own ninja
    if shutil.which("c++") is None and shutil.which("g++") is None:
        print("error: DeepSpeed needs a C++ compiler (c++); apt-get install g++", file=sys.stderr)
        return 1
    if shutil.which("ninja") is None:
        print(
            "error: DeepSpeed needs ninja; pip install ninja into .venv, or apt-get install ninja-build",
            file=sys.stderr,
        )
        return 1
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    if not torch.cuda.is_available():
        from lookalike.training.deepspeed_setup import load_operator

        load_operator()
    print("setup is complete: training can run on this machine")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
