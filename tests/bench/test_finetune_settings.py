"""Which settings of a finetune make images of held-out photos' subjects more like them: the truth, not the gate.

    python -m pytest tests/bench -k finetune_settings -s         # resumes in LOOKALIKE_BENCH_FOLDER

Adapters of sample-world subjects that no other bench uses are trained by each setting, and judged on held-out photos by
a probe that knows the sample world (tests/bench/truth.py), beside their base. What the gate's own metrics say stands
beside it. Writes results/finetune-settings.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.evaluation.estimates import cluster_bootstrap
from lookalike.evaluation.scores import SCORES
from lookalike.storage import open_store
from lookalike.training.curriculum import PhaseConfig
from tests.bench.adapters import Lab, Part, Settings
from tests.bench.measured import keep
from tests.bench.truth import Truth

SUBJECTS = (40, 41)
METRICS = ("loss_right", "identity", "position/identity", "copying")


def _settings(rate: float, steps: int, batch_size: int, **changes: Any) -> Settings:
    phase = PhaseConfig(name="personal", steps=steps, conditions="mllm+references", learning_rate=rate, warmup_steps=5)
    return Settings(phase, batch_size, **changes)


TRIED: dict[str, Settings] = {  # learning rate, steps x batch size
    "1e-3-40x4": _settings(1e-3, 40, 4),
    "1e-2-40x8": _settings(1e-2, 40, 8),
}

pytestmark = pytest.mark.timeout(7200)


@pytest.fixture(scope="module")
def lab(bench_folder: Path) -> Lab:
    lab = Lab(bench_folder, TRIED)
    lab.prepare(SUBJECTS)
    return lab


@pytest.mark.parametrize("number", SUBJECTS)
@pytest.mark.parametrize("name", TRIED)
def test_finetune_settings_part(name: str, number: int, lab: Lab) -> None:
    part = Part(name, number)
    print(f"{part}: {lab.make(part)['seconds']}")
    assert lab.images(part)


def test_finetune_settings(lab: Lab, bench_folder: Path) -> None:
    made = {name: [n for n in SUBJECTS if lab.exists(Part(name, n))] for name in TRIED}
    truth = Truth(lab, bench_folder)
    table = {
        name: {"subjects": numbers, **_row([_found(lab, truth, Part(name, number)) for number in numbers])}
        for name, numbers in made.items()
        if numbers
    }
    keep("finetune-settings", {"probe": truth.own_error(SUBJECTS), "settings": table})
    assert all(numbers == list(SUBJECTS) for numbers in made.values()), "some parts are not made"


def _found(lab: Lab, truth: Truth, part: Part) -> dict[str, Any]:
    """The truth about a part, and by how much each metric differs from the base's."""
    made = lab.make(part)
    metrics = json.loads(open_store(made["scores"]).read(SCORES))["metrics"]
    gain = {name: metrics[name]["mean"] - metrics[f"before/{name}"]["mean"] for name in METRICS}
    return {**truth(part), "gain": gain, "seconds": made["seconds"]["train"]}


def _row(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over subjects; of the likeness also the subjects' own values."""
    nearer = [each["nearer by"][0] for each in found]
    interval = cluster_bootstrap(np.array(nearer), [str(number) for number in range(len(nearer))])
    return {
        "nearer by, of each subject": nearer,
        "likeness of before, after, real photos": [
            [each["before"]["likeness"], each["after"]["likeness"], each["ceiling"]] for each in found
        ],
        "nearer by": [round(value, 4) for value in (interval.mean, interval.low, interval.high)],
        "place": [round(float(np.mean([each[when]["place"] for each in found])), 3) for when in ("before", "after")],
        "metrics less the base's": {
            name: round(float(np.mean([each["gain"][name] for each in found])), 4) for name in METRICS
        },
        "good": sum(each["good"] for each in found),
        "seconds of training": round(float(np.mean([each["seconds"] for each in found]))),
    }
