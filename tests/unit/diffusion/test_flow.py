import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from scipy.stats import kstest, norm

from lookalike.diffusion.flow import FlowConfig, add_noise, draw, flow_matching_loss, seed_of
from lookalike.errors import ConfigError

FLOW = FlowConfig()
SEED_OF_7_SAMPLE = 311094398976909013189493083179722473537


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096])
def test_shift_equals_diffusers_flux_pipeline(tokens: int) -> None:
    mu = calculate_shift(tokens)
    assert FLOW.mu(tokens) == pytest.approx(mu, abs=1e-12)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 25, 25), mu=mu)
    shifted = torch.special.expit(torch.logit(torch.linspace(1, 1 / 25, 25)) + FLOW.mu(tokens))
    torch.testing.assert_close(shifted, scheduler.sigmas[:-1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_scheduler_with_a_fixed_shift_has_it_in_training_too(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    levels = np.linspace(1, 1 / 25, 25)
    scheduler.set_timesteps(sigmas=levels)
    for tokens in (64, 4096):
        mu = FlowConfig.from_scheduler(scheduler.config).mu(tokens)
        shifted = torch.special.expit(torch.logit(torch.from_numpy(levels)) + mu)
        torch.testing.assert_close(shifted.float(), scheduler.sigmas[:-1])


def test_training_sees_a_shifted_logit_normal() -> None:
    numbers = draw([str(i) for i in range(4000)], 0, (64, 1), FLOW)
    logits = torch.logit(numbers.sigma.double()).numpy()
    assert kstest(logits, norm(FLOW.mu(64), 1).cdf).pvalue > 0.01
    scheduler, plain = FlowMatchEulerDiscreteScheduler(), torch.special.expit(torch.from_numpy(logits) - FLOW.mu(64))
    torch.testing.assert_close(scheduler.time_shift(FLOW.mu(64), 1.0, plain).float(), numbers.sigma)


def test_a_samples_numbers_depend_on_its_identity_alone() -> None:
    alone, other_seed = draw(["b"], (0, 1), (64, 16), FLOW), draw(["b"], (0, 2), (64, 16), FLOW)
    together = draw(["a", "b", "c"], (0, 1), (64, 16), FLOW)
    for name in ("noise", "sigma", "uniform"):
        assert torch.equal(getattr(alone, name)[0], getattr(together, name)[1])
        assert not torch.equal(getattr(alone, name), getattr(other_seed, name))
    assert seed_of("a", 1) != seed_of("a1")
    assert seed_of(7, "sample") == SEED_OF_7_SAMPLE  # another value would change every resumed run


def test_noising_and_loss() -> None:
    clean, noise = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    noisy = add_noise(clean, noise, sigma)
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[2], noise[2])
    torch.testing.assert_close(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    torch.testing.assert_close(flow_matching_loss(noise - clean, noise, clean), torch.zeros(3))
    predicted = noise - clean
    predicted[1] += 2
    assert flow_matching_loss(predicted, noise, clean).tolist() == pytest.approx([0, 4, 0], abs=1e-6)
    # the true velocity takes a sampler from noise to the image in one step
    torch.testing.assert_close(noise + (0 - 1) * (noise - clean), clean)


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="logit_std"):
        FlowConfig(logit_std=0)
    assert math.isclose(FLOW.mu(4096), 1.15)
