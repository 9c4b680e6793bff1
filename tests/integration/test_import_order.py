"""Inside ``deepspeed.zero.Init`` torch's factories are patched, and a library that is imported there first breaks."""

import subprocess
import sys
from pathlib import Path

from lookalike.models.presets import load_preset
from lookalike.models.sources import materialise

_BUILDS = """
import sys
from pathlib import Path
from lookalike.models.joint import import_model_classes
from lookalike.models.subject import SubjectModel
import_model_classes()
before = set(sys.modules)
SubjectModel.from_config(Path(sys.argv[1])).enable_gradient_checkpointing()
libraries = ("torch", "transformers", "diffusers", "peft", "lookalike")
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in libraries))
"""


def test_building_a_model_imports_nothing_more(tmp_path: Path) -> None:
    bundle = materialise(load_preset("mini"), tmp_path / "mini", seed=0)
    argv = [sys.executable, "-c", _BUILDS, str(bundle)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.stdout == "[]\n", done.stdout + done.stderr
