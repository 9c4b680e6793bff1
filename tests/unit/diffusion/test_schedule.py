import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lookalike.diffusion.flow import FlowConfig
from lookalike.diffusion.schedule import (
    NAMED_SCHEDULES,
    ConditionWeights,
    DenoisingSchedule,
    SamplerPlan,
    denoising_schedule,
)
from lookalike.errors import ConfigError
from lookalike.models.presets import list_presets, load_preset


def test_the_papers_plan_at_512_pixels_is_3_4_18() -> None:
    sigmas = torch.special.expit(torch.logit(torch.linspace(1, 1 / 25, 25)) + FlowConfig().mu(1024)).tolist()
    plan = SamplerPlan.of(DenoisingSchedule(), sigmas)
    assert list(map(str, plan.weights)) == ["mllm"] * 3 + ["mllm+references"] * 4 + ["references"] * 18
    assert str(plan).splitlines()[0] == "  0  sigma 1.0000  mllm"
    assert len(str(plan).splitlines()) == 25


def test_a_plan_is_plotted_step_by_step() -> None:
    axes = Figure().add_subplot()
    SamplerPlan.of(DenoisingSchedule(0.8, 0.4, blend=0.2), [1.0, 0.8, 0.6, 0.45, 0.2]).plot(axes)
    mllm, references = (patch.get_data().values.tolist() for patch in axes.patches)
    assert mllm == pytest.approx([1, 1, 1, 0.75, 0])
    assert references == pytest.approx([0, 0.5, 1, 1, 1])
    assert axes.lines[0].get_ydata().tolist() == [1.0, 0.8, 0.6, 0.45, 0.2]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mllm", "references", "noise level"]


def test_a_narrow_blend_equals_hard_thresholds_and_every_step_sees_a_condition() -> None:
    levels = np.linspace(0, 1, 201)
    hard, narrow = DenoisingSchedule(0.7, 0.3), DenoisingSchedule(0.7, 0.3, blend=1e-6)
    assert all(narrow(s) == hard(s) for s in levels if min(abs(s - 0.7), abs(s - 0.3)) > 1e-3)
    wide = [DenoisingSchedule(0.55, 0.5, blend=0.4)(sigma) for sigma in levels]
    assert all(seen.mllm + seen.references > 0.5 for seen in wide)
    assert np.all(np.diff([seen.mllm for seen in wide]) >= 0)
    assert np.all(np.diff([seen.references for seen in wide]) <= 0)
    assert {seen.mllm for seen in wide} > {0.0, 1.0}
    for name, schedule in NAMED_SCHEDULES.items():
        assert {seen in (0, 1) for s in levels for seen in (schedule(s).mllm, schedule(s).references)} == {True}, name


def test_any_function_of_the_noise_level_is_a_schedule() -> None:
    def stages(sigma: float) -> ConditionWeights:
        return ConditionWeights(mllm=sigma**2, references=1 - sigma)

    assert denoising_schedule(stages) is stages
    assert str(SamplerPlan.of(stages, [0.5]).weights[0]) == "0.25 mllm+0.50 references"
    assert str(ConditionWeights(0, 0)) == "none"
    with pytest.raises(ConfigError, match=r"outside \[0, 1\].*1.50 mllm"):
        SamplerPlan.of(lambda sigma: ConditionWeights(1.5, 0), [0.5])
    with pytest.raises(ConfigError, match="returns no ConditionWeights"):
        SamplerPlan.of(lambda sigma: (1, 0), [0.5])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mllm_only", ConditionWeights(True, False)),
        ("both", ConditionWeights(True, True)),
        ("reference_only", ConditionWeights(False, True)),
    ],
)
def test_named_schedules_hold_at_every_level(name: str, expected: ConditionWeights) -> None:
    assert {denoising_schedule(name)(sigma) for sigma in (*np.linspace(0, 1, 11), 1.0)} == {expected}


def test_text_forms() -> None:
    assert denoising_schedule("0.85/0.7") == DenoisingSchedule(0.85, 0.7)
    assert denoising_schedule("0/0") == NAMED_SCHEDULES["mllm_only"]
    assert denoising_schedule("0.85/0.7/0.1") == DenoisingSchedule(0.85, 0.7, blend=0.1)
    for bad in ("0.95", "early", "a/b", "0.9/0.8/0.1/0.1"):
        with pytest.raises(ConfigError, match="unknown denoising schedule"):
            denoising_schedule(bad)


def test_the_name_preset_means_the_presets_schedule() -> None:
    assert denoising_schedule("preset", "0.9/0.4") == DenoisingSchedule(0.9, 0.4)
    assert denoising_schedule("both", "0.9/0.4") == NAMED_SCHEDULES["both"]
    with pytest.raises(ConfigError, match=r"unknown denoising schedule.*use one of paper"):
        denoising_schedule("preset", "preset")


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_have_a_schedule(name: str) -> None:
    assert isinstance(denoising_schedule("preset", load_preset(name).stages), DenoisingSchedule)


def test_thresholds_out_of_order_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"denoising schedule are out of order.*tau1=0.5, tau2=0.9"):
        DenoisingSchedule(0.5, 0.9)
    with pytest.raises(ConfigError, match=r"blend=-0\.1"):
        DenoisingSchedule(0.9, 0.5, -0.1)
