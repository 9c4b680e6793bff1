import dataclasses

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from lookalike.models import dit
from lookalike.models.dit import Context, References, image_ids, prepare_references, velocity
from lookalike.models.presets import ReferenceConfig

CONFIG = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 6, 6),
}


@pytest.fixture(params=[True, False], ids=["guidance", "no guidance"])
def transformer(request, perturb) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return perturb(FluxTransformer2DModel(**CONFIG, guidance_embeds=request.param)).eval()


def make(batch: int = 2, slots: int = 2):
    torch.manual_seed(1)
    context = Context(torch.randn(batch, 7, 24), torch.ones(batch, 7, dtype=torch.bool))
    references = References(torch.randn(batch, slots, 6, 16), torch.ones(batch, slots, dtype=torch.bool), (2, 3))
    return torch.randn(batch, 12, 16), torch.tensor([0.9, 0.3])[:batch], context, references


@torch.no_grad()
def test_without_references_it_is_diffusers_own_flux(transformer) -> None:
    noisy, sigma, context, _ = make()
    found = velocity(transformer, noisy, sigma, (3, 4), context, None, "diagonal", 2.0)
    expected = transformer(
        hidden_states=noisy,
        encoder_hidden_states=context.tokens,
        pooled_projections=torch.zeros(2, 8),
        timestep=sigma * 1000 / 1000,
        guidance=torch.full((2,), 2.0) if transformer.config.guidance_embeds else None,
        img_ids=FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32),
        txt_ids=torch.zeros(7, 3),
        return_dict=False,
    )[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_masked_conditions_equal_absent_ones(transformer) -> None:
    noisy, sigma, context, references = make()

    def run(context, references):
        return velocity(transformer, noisy, sigma, (3, 4), context, references, "diagonal", 1.0)

    no_text = Context(context.tokens, torch.zeros_like(context.mask))
    no_images = References(references.latents, torch.zeros_like(references.mask), references.grid)
    torch.testing.assert_close(run(no_text, references), run(None, references), rtol=0, atol=1e-5)
    torch.testing.assert_close(run(context, no_images), run(context, None), rtol=0, atol=1e-5)
    torch.testing.assert_close(run(no_text, no_images), run(None, None), rtol=0, atol=1e-5)
    assert (run(context, references) - run(context, None)).abs().max() > 1e-2
    assert (run(context, references) - run(None, references)).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("attention", ["full", "cached"])
def test_twice_the_tokens_at_half_the_weight_change_nothing(transformer, monkeypatch, attention) -> None:
    noisy, sigma, context, references = make(slots=1)
    context.mask[0, :3] = False
    config = ReferenceConfig(attention=attention)

    def run(context: Context, references: References) -> torch.Tensor:
        seen = prepare_references(transformer, references, (3, 4), config)
        return velocity(transformer, noisy, sigma, (3, 4), context, seen, "diagonal", 1.0)

    expected = run(context, references)
    light = run(dataclasses.replace(context, weight=0.5), dataclasses.replace(references, weight=0.5))
    assert (light - expected).abs().max() > 1e-3
    feather = dataclasses.replace(context, weight=1e-9), dataclasses.replace(references, weight=1e-9)
    nothing = velocity(transformer, noisy, sigma, (3, 4), None, None, "diagonal", 1.0)
    torch.testing.assert_close(run(*feather), nothing, rtol=0, atol=1e-4)

    twice = Context(context.tokens.repeat(1, 2, 1), context.mask.repeat(1, 2), weight=0.5)
    ids = image_ids((3, 4), (2, 3), 1, "diagonal")
    monkeypatch.setattr(dit, "image_ids", lambda *_: torch.cat([ids, ids[12:]]))  # copies stand where they stood
    doubled = References(references.latents.repeat(1, 1, 2, 1), references.mask, (2, 3), weight=0.5)
    torch.testing.assert_close(run(twice, doubled), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_distinguish_references(transformer) -> None:
    noisy, sigma, context, references = make()
    for position in ("diagonal", "index"):
        swapped = References(references.latents.flip(1), references.mask, references.grid)
        first, second = (
            velocity(transformer, noisy, sigma, (3, 4), context, r, position, 1.0) for r in (references, swapped)
        )
        assert (first - second).abs().max() > 1e-4


def test_diagonal_offsets_accumulate_as_in_uno() -> None:
    ids = image_ids((3, 4), (2, 3), 2, "diagonal")
    assert ids[:12].tolist() == FluxPipeline._prepare_latent_image_ids(1, 3, 4, "cpu", torch.float32).tolist()
    assert ids[12].tolist() == [0, 3, 4]
    assert ids[18].tolist() == [0, 5, 7]
    assert ids[-1].tolist() == [0, 6, 9]
    by_index = image_ids((3, 4), (2, 3), 2, "index")
    assert by_index[12].tolist() == [1, 0, 0]
    assert by_index[18].tolist() == [2, 0, 0]
