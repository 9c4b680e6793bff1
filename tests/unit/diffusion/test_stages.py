import numpy as np
import pytest
import torch

from lookalike.diffusion.flow import FlowConfig, shift_sigma
from lookalike.diffusion.stages import NAMED_STAGES, Conditions, StageSchedule, stages_of
from lookalike.errors import ConfigError


def test_the_papers_plan_at_512_pixels_is_3_4_18() -> None:
    sigmas = shift_sigma(torch.linspace(1, 1 / 25, 25), FlowConfig().mu(1024)).tolist()
    plan = [str(conditions) for conditions in StageSchedule().plan(sigmas)]
    assert plan == ["mllm"] * 3 + ["mllm+references"] * 4 + ["references"] * 18
    assert StageSchedule().table(sigmas).splitlines()[0] == "  0  sigma 1.0000  mllm"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mllm_only", Conditions(True, False)),
        ("both", Conditions(True, True)),
        ("reference_only", Conditions(False, True)),
    ],
)
def test_named_stages_hold_at_every_level(name: str, expected: Conditions) -> None:
    assert {stages_of(name).at(sigma) for sigma in (*np.linspace(0, 1, 11), 1.0)} == {expected}


def test_text_forms() -> None:
    assert stages_of("0.85/0.7") == StageSchedule(0.85, 0.7)
    assert stages_of("0/0") == NAMED_STAGES["mllm_only"]
    for bad in ("0.95", "early", "a/b"):
        with pytest.raises(ConfigError, match="unknown stages"):
            stages_of(bad)


def test_stages_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stages out of order.*tau1=0.5, tau2=0.9"):
        StageSchedule(0.5, 0.9)
