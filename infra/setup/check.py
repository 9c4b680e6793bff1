"""What a machine needs that pip cannot bring: a C++ compiler. Checks it, then compiles DeepSpeed's CPU operator once.

Run by ``make setup``. DeepSpeed compiles its shared-memory communication at first use (about a minute, kept in the
user's torch extensions folder), which would otherwise happen inside the first training.
"""

import os
import shutil
import sys
from pathlib import Path


def main() -> int:
    """Exit code 0 when training can run here."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the venv's own ninja
    if shutil.which("c++") is None and shutil.which("g++") is None:
        print("error: no C++ compiler (c++); DeepSpeed compiles an operator; apt-get install g++", file=sys.stderr)
        return 1
    if shutil.which("ninja") is None:
        print("error: no ninja; pip install ninja into .venv, or apt-get install ninja-build", file=sys.stderr)
        return 1
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    if not torch.cuda.is_available():
        from lookalike.training.deepspeed_setup import load_operator

        load_operator()
    print("set up: training can run here")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
