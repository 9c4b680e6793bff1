import numpy as np
import torch
from diffusers import FluxPipeline

from lookalike.models.vae import LatentCache, decode, encode, load_vae, pack, token_grid, unpack


def test_packing_equals_diffusers_flux_pipeline() -> None:
    latents = torch.randn(2, 4, 6, 10)
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(FluxPipeline._unpack_latents(tokens, 24, 40, 4), latents)
    assert torch.equal(unpack(tokens, (3, 5)), latents)


def test_latents_are_shifted_and_scaled_as_flux_does(bundle_dir, pictures) -> None:
    vae = load_vae(bundle_dir)
    vae.register_to_config(shift_factor=0.1, scaling_factor=0.4)
    images = torch.from_numpy(np.stack(pictures(2, 64, 64))).permute(0, 3, 1, 2)
    raw = vae.encode(images / 127.5 - 1).latent_dist.mode()
    tokens = encode(vae, images)
    assert token_grid(vae, 64, 64) == (8, 8)
    assert tokens.shape == (2, 64, 16)
    torch.testing.assert_close(unpack(tokens, (8, 8)), (raw - 0.1) * 0.4)
    expected = ((vae.decode(raw).sample.clamp(-1, 1) + 1) * 127.5).round()
    assert (decode(vae, tokens, (8, 8)).float() - expected).abs().max() <= 1


def test_the_cache_equals_the_vae_and_removes_the_oldest_latents(bundle_dir, pictures) -> None:
    vae = load_vae(bundle_dir)
    images = torch.from_numpy(np.stack(pictures(3, 64, 64))).permute(0, 3, 1, 2)
    cache = LatentCache()
    first = cache.encode(vae, images)
    torch.testing.assert_close(first, encode(vae, images), rtol=1e-4, atol=1e-5)
    assert torch.equal(cache.encode(None or vae, images[[2, 0]]), first[[2, 0]])
    small = LatentCache(capacity_mib=0)
    assert torch.equal(small.encode(vae, images), first)
    assert len(small._latents) == 0
