"""What is imported where.

Inside ``deepspeed.zero.Init`` torch's factories are patched, and a library that is imported there first breaks; and the
start of a training is mostly imports.
"""

import subprocess
import sys
from pathlib import Path

from lookalike.bundles.build import materialise
from lookalike.models.presets import load_preset

_BUILDS = """
import sys
from pathlib import Path
from lookalike.bundles.load import build_model
from lookalike.models.joint import import_model_classes
import_model_classes()
before = set(sys.modules)
build_model(Path(sys.argv[1])).enable_gradient_checkpointing()
libraries = ("torch", "transformers", "diffusers", "peft", "lookalike")
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in libraries))
"""


def test_building_a_model_imports_nothing_more(tmp_path: Path) -> None:
    bundle = materialise(load_preset("mini"), tmp_path / "mini", seed=0)
    argv = [sys.executable, "-c", _BUILDS, str(bundle)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.stdout == "[]\n", done.stdout + done.stderr


_ENGINE = """
import os, sys
from pathlib import Path
import torch
from lookalike.bundles.load import build_model
from lookalike.models.joint import import_model_classes
from lookalike.models.weights import strict_weights
from lookalike.training.config import TrainConfig
from lookalike.training.deepspeed_setup import prepare_process
from lookalike.training.zero import ZeroEngine
os.environ.pop("DS_ACCELERATOR", None)
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
bundle = Path(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{bundle}.rendezvous", rank=0, world_size=1)
import_model_classes()
prepare_process(torch.device("cpu"))
ZeroEngine(
    build=lambda: build_model(bundle),
    weights=lambda model: strict_weights(model, bundle),
    select=lambda model: model.set_trainable(("aggregator", "transformer")),
    config=TrainConfig(dataset="d", run="r", batch_size=2, micro_batch_size=1),
)
assert os.environ["DS_ACCELERATOR"] == "cpu"
print(sorted({"torch._inductor.compile_fx", "mlflow"} & sys.modules.keys()))
import mlflow
"""


def test_an_engine_imports_no_compiler_and_no_mlflow(tmp_path: Path) -> None:
    bundle = materialise(load_preset("mini"), tmp_path / "mini", seed=0)
    argv = [sys.executable, "-c", _ENGINE, str(bundle)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    assert done.returncode == 0, done.stderr  # mlflow can be imported again


_STARTS = """
import importlib, pkgutil, sys, jobs
for job in pkgutil.iter_modules(jobs.__path__):
    importlib.import_module(f"jobs.{job.name}")
print(sorted({name.split(".")[0] for name in sys.modules} & {"diffusers", "transformers", "peft", "deepspeed"}))
"""


def test_a_job_starts_without_the_libraries_of_models() -> None:
    """They take seconds, which its ranks and actors spend beside each other; the job would spend them before."""
    done = subprocess.run([sys.executable, "-c", _STARTS], capture_output=True, text=True, timeout=200)
    assert done.stdout == "[]\n", done.stdout + done.stderr
