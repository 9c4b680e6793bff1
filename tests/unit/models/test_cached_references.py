"""Cached reference attention against a literal recomputation: one sequence, one mask, a noise level for each token."""

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn import functional

from lookalike.models.adapters import inject_lora
from lookalike.models.attention import ReferenceAttnProcessor, use_reference_attention
from lookalike.models.dit import Context, References, image_ids, prepare_references, velocity
from lookalike.models.presets import LoraConfig, ReferenceConfig

GRID, REFERENCE_GRID, SIGMA = (3, 4), (2, 3), torch.tensor([0.9, 0.5, 0.2])
CACHED = ReferenceConfig(attention="cached")
REFERENCES_SEEN = torch.tensor([[True, True], [True, False], [False, False]])


@pytest.fixture
def transformer(perturb) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    return perturb(model, 0.1).eval()


def inputs() -> tuple[Tensor, Context, References]:
    torch.manual_seed(1)
    context = Context(torch.randn(3, 7, 24), torch.arange(7) < torch.tensor([[7], [4], [6]]))
    references = References(torch.randn(3, 2, 6, 16), REFERENCES_SEEN, REFERENCE_GRID)
    return torch.randn(3, 12, 16), context, references


def cached(transformer: Any, position: str = "diagonal") -> Tensor:
    noisy, context, references = inputs()
    config = ReferenceConfig(attention="cached", position=position)
    keys = prepare_references(transformer, references, GRID, config, 2.0)
    return velocity(transformer, noisy, SIGMA, GRID, context, keys, position, 2.0)


def literal(model: Any, position: str = "diagonal") -> Tensor:
    """One row at a time, what it may not see cut away: tokens ``[context, target, references]`` in one sequence."""
    noisy, context, references = inputs()
    rows = []
    for row in range(3):
        text = model.context_embedder(context.tokens[row][context.mask[row]])
        latents = references.latents[row][references.mask[row]]
        image = model.x_embedder(torch.cat([noisy[row], latents.flatten(0, 1)]))
        ids = torch.cat([torch.zeros(len(text), 3), image_ids(GRID, REFERENCE_GRID, len(latents), position)])
        rope = model.pos_embed(ids)
        late = torch.arange(len(ids)) >= len(text) + 12
        level = torch.stack([embed(model, float(SIGMA[row])), embed(model, 0.0)])[late.long()]
        mask = ~late[:, None] | late[None, :]  # a reference sees references, the others see everything
        for block in model.transformer_blocks:
            text, image = double_block(block, text, image, level, rope, mask)
        both = torch.cat([text, image])
        for block in model.single_transformer_blocks:
            both = single_block(block, both, level, rope, mask)
        target = both[len(text) : len(text) + 12]
        rows.append(model.proj_out(model.norm_out(target[None], level[:1]))[0])
    return torch.stack(rows)


def embed(model: Any, sigma: float) -> Tensor:
    return model.time_text_embed(torch.tensor([sigma * 1000]), torch.tensor([2000.0]), torch.zeros(1, 8))[0]


def attend(attn: Any, parts: list[tuple[Tensor, Tensor, Tensor]], rope: Any, mask: Tensor) -> Tensor:
    query, key, value = (torch.cat(part) for part in zip(*parts, strict=True))  # S heads head_dim
    query, key = (apply_rotary_emb(x[None], rope, sequence_dim=1)[0] for x in (query, key))
    scores = torch.einsum("qhd,khd->hqk", query, key) / attn.head_dim**0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def heads(attn: Any, x: Tensor) -> Tensor:
    return x.view(len(x), -1, attn.head_dim)


def double_block(block: Any, text: Tensor, image: Tensor, level: Tensor, rope: Any, mask: Tensor) -> Any:
    attn, length = block.attn, len(text)
    split = {"text": (text, level[:length], block.norm1_context), "image": (image, level[length:], block.norm1)}
    changes = {name: norm.linear(functional.silu(rows)).chunk(6, -1) for name, (_, rows, norm) in split.items()}
    inner = {name: norm.norm(x) * (1 + changes[name][1]) + changes[name][0] for name, (x, _, norm) in split.items()}
    t, i = inner["text"], inner["image"]
    mixed = attend(
        attn,
        [
            (
                attn.norm_added_q(heads(attn, attn.add_q_proj(t))),
                attn.norm_added_k(heads(attn, attn.add_k_proj(t))),
                heads(attn, attn.add_v_proj(t)),
            ),
            (
                attn.norm_q(heads(attn, attn.to_q(i))),
                attn.norm_k(heads(attn, attn.to_k(i))),
                heads(attn, attn.to_v(i)),
            ),
        ],
        rope,
        mask,
    )
    out = {"text": attn.to_add_out(mixed[:length]), "image": attn.to_out[0](mixed[length:])}
    results = []
    for name, norm, ff in (("text", block.norm2_context, block.ff_context), ("image", block.norm2, block.ff)):
        _, _, gate, shift, scale, gate_ff = changes[name]
        x = split[name][0] + gate * out[name]
        results.append(x + gate_ff * ff(norm(x) * (1 + scale) + shift))
    return results


def single_block(block: Any, both: Tensor, level: Tensor, rope: Any, mask: Tensor) -> Tensor:
    attn = block.attn
    shift, scale, gate = block.norm.linear(functional.silu(level)).chunk(3, -1)
    x = block.norm.norm(both) * (1 + scale) + shift
    parts = (
        attn.norm_q(heads(attn, attn.to_q(x))),
        attn.norm_k(heads(attn, attn.to_k(x))),
        heads(attn, attn.to_v(x)),
    )
    mixed = torch.cat([attend(attn, [parts], rope, mask), block.act_mlp(block.proj_mlp(x))], dim=-1)
    return both + gate * block.proj_out(mixed)


@torch.no_grad()
@pytest.mark.parametrize("position", ["diagonal", "index"])
def test_cached_equals_a_full_recomputation_under_the_same_mask(transformer, position: str) -> None:
    found, expected = cached(transformer, position), literal(transformer, position)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_gradients_equal_a_full_recomputation(transformer, perturb, lora: bool, checkpointing: bool) -> None:
    if lora:
        inject_lora(transformer, LoraConfig(rank=4, target_modules=("to_q", "to_k", "to_v", "add_k_proj", "proj_mlp")))
        perturb(transformer, 0.05)
    learning = [name for name, _ in transformer.named_parameters() if (".lora_" in name) == lora]
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(name in learning)

    def gradients(run: Any) -> dict[str, Tensor]:
        transformer.zero_grad()
        loss = (run(transformer) - 1).square().mean()
        loss.backward()
        named = dict(transformer.named_parameters())
        return {name: named[name].grad for name in learning if named[name].grad is not None} | {"loss": loss.detach()}

    expected = gradients(literal)
    transformer.train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    found = gradients(cached)
    assert set(found) == set(expected)
    assert max(gradient.abs().max() for name, gradient in expected.items() if "add_k_proj" in name) > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_without_references_the_processor_is_diffusers_own(transformer) -> None:
    noisy, context, references = inputs()

    def run() -> Tensor:
        return velocity(transformer, noisy, SIGMA, GRID, context, references, "diagonal", 2.0)

    before = run()
    transformer.set_attention_backend("native")
    use_reference_attention(transformer)
    assert all(isinstance(processor, ReferenceAttnProcessor) for processor in transformer.attn_processors.values())
    assert {p._attention_backend.value for p in transformer.attn_processors.values()} == {"native"}
    assert torch.equal(run(), before)
    transformer.fuse_qkv_projections()
    torch.testing.assert_close(run(), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(cached(transformer), literal_after_unfusing(transformer), rtol=0, atol=1e-5)


def literal_after_unfusing(transformer: Any) -> Tensor:
    transformer.unfuse_qkv_projections()
    return literal(transformer)


@torch.no_grad()
def test_masked_references_equal_absent_ones_and_references_do_not_see_the_target(transformer) -> None:
    noisy, context, references = inputs()
    hidden = References(references.latents, torch.zeros_like(references.mask), REFERENCE_GRID)
    keys = prepare_references(transformer, hidden, GRID, CACHED)
    found = velocity(transformer, noisy, SIGMA, GRID, context, keys, "diagonal", 1.0)
    absent = velocity(transformer, noisy, SIGMA, GRID, context, None, "diagonal", 1.0)
    torch.testing.assert_close(found, absent, rtol=0, atol=1e-5)
    assert (cached(transformer) - velocity(transformer, noisy, SIGMA, GRID, context, None, "diagonal", 2.0))[
        :2
    ].abs().max() > 1e-2
