"""True and distilled guidance, and conditions that are blended by weight."""

import pytest
import torch

from lookalike.diffusion.schedule import ConditionWeights, DenoisingSchedule
from lookalike.errors import ConfigError

# four steps of 0.95/0.7: MLLM, both, references, references; 22 MLLM tokens, 64 of the target, 64 of the reference
STAGED = {"num_inference_steps": 4, "output_type": "latent", "stages": "0.95/0.7", "seeds": [0]}


def lengths(calls: list[dict]) -> list[tuple[int, int]]:
    return [(call["encoder_hidden_states"].shape[1], call["hidden_states"].shape[1]) for call in calls]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(22, 64), (0, 64), (22, 128), (0, 64), (0, 128), (0, 64), (0, 128), (0, 64)]),  # all is the default
        ({"negative": "mllm"}, [(22, 64), (0, 64), (22, 128), (0, 128), (0, 128), (0, 128)]),
        ({"negative": "references"}, [(22, 64), (22, 128), (22, 64), (0, 128), (0, 64), (0, 128), (0, 64)]),
        ({"guidance_scale": 1}, [(22, 64), (22, 128), (0, 128), (0, 128)]),
    ],
    ids=["all", "mllm", "references", "off"],
)
def test_the_negative_branch_does_not_compute_what_it_drops(pipe, photos, flux_calls, options, expected) -> None:
    pipe("a mug", photos[:1], **STAGED, **options)
    assert lengths(flux_calls) == expected


def test_guidance_is_the_difference_of_two_branches(pipe, photos) -> None:
    options = {"num_inference_steps": 1, "seeds": [0], "output_type": "latent"}
    for negative in ("all", "mllm", "references"):

        def run(scale: float, stages: str = "both", negative: str = negative) -> torch.Tensor:
            return pipe("a mug", photos[:1], guidance_scale=scale, stages=stages, negative=negative, **options).images

        positive, unguided = run(1), run(0)
        torch.testing.assert_close(run(3), unguided + 3 * (positive - unguided), rtol=1e-4, atol=1e-4)
        left = {"mllm": "reference_only", "references": "mllm_only"}.get(negative)
        if left:
            torch.testing.assert_close(unguided, run(1, stages=left), rtol=1e-4, atol=1e-4)


def test_distilled_guidance_is_for_both_branches_and_refused_where_there_is_none(pipe, photos, flux_calls) -> None:
    plain = pipe("a mug", photos[:1], **STAGED).images
    assert {float(call["guidance"][0]) for call in flux_calls} == {1.0}
    flux_calls.clear()
    distilled = pipe("a mug", photos[:1], distilled_guidance=3.5, **STAGED).images
    assert {float(call["guidance"][0]) for call in flux_calls} == {3.5}
    assert len(flux_calls) == 8
    assert (distilled - plain).abs().max() > 1e-3
    pipe.transformer.register_to_config(guidance_embeds=False)
    try:
        with pytest.raises(ConfigError, match=r"no guidance embedding \(3.5\); use guidance_scale"):
            pipe("a mug", photos[:1], distilled_guidance=3.5, **STAGED)
    finally:
        pipe.transformer.register_to_config(guidance_embeds=True)


def test_a_blend_computes_nothing_of_a_condition_without_weight(pipe, photos, flux_calls) -> None:
    levels = pipe.plan("paper", 4).sigmas
    weights = dict(zip(levels, [(1, 0), (0.5, 0.25), (0, 1), (0, 0)], strict=True))
    options = {**STAGED, "guidance_scale": 1}
    blended = pipe("a mug", photos[:1], **{**options, "stages": lambda sigma: ConditionWeights(*weights[sigma])}).images
    assert lengths(flux_calls) == [(22, 64), (22, 128), (0, 128), (0, 64)]
    assert [call["joint_attention_kwargs"]["attention_mask"].dtype for call in flux_calls[:3]] == [
        torch.bool,
        torch.float32,
        torch.bool,
    ]
    bias = flux_calls[1]["joint_attention_kwargs"]["attention_mask"].flatten().exp()
    torch.testing.assert_close(bias, torch.tensor([0.5] * 22 + [1.0] * 64 + [0.25] * 64))
    hard = pipe("a mug", photos[:1], **options).images
    assert (hard - blended).abs().max() > 1e-3
    narrow = pipe("a mug", photos[:1], **{**options, "stages": DenoisingSchedule(0.95, 0.7, blend=1e-6)}).images
    assert torch.equal(narrow, hard)


def test_a_plan_is_what_the_call_does(pipe, photos) -> None:
    plan = pipe.plan("0.95/0.7/0.2", 6, height=32, width=64)
    pipe("a mug", photos[:1], num_inference_steps=6, height=32, width=64, output_type="latent")
    assert plan.sigmas == tuple(pipe.scheduler.sigmas[:-1].tolist())
    assert plan.weights == tuple(DenoisingSchedule(0.95, 0.7, 0.2)(sigma) for sigma in plan.sigmas)
    assert plan.sigmas != pipe.plan("0.95/0.7/0.2", 6).sigmas  # another size, another shift
    assert plan.sigmas == tuple(pipe.scheduler.sigmas[:-1].tolist())  # a plan leaves the scheduler as it is
