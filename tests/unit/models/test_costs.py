"""The paper's scale on the meta device, against published sizes and formulas written by hand."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lookalike.models.aggregate import LayerAggregator
from lookalike.models.costs import (
    Sample,
    aggregator_flops,
    context_of,
    count_parameters,
    denoise,
    denoising_flops,
    meta_model,
    meta_vae,
    mllm_flops,
)
from lookalike.models.dit import Context
from lookalike.models.presets import load_preset
from lookalike.models.subject import SubjectModel

PAPER, FREE = "flux-internvl3-8b", "flux-schnell-qwen3-vl"
PUBLISHED_MLLM = {PAPER: 7_944_373_760, FREE: 8_767_123_696}  # with the language head; the second as its Hub page says
HEAD = {PAPER: 151_674 * 3584, FREE: 151_936 * 4096}
PUBLISHED_FLUX = 11_901_408_320  # FLUX.1-dev, as its Hub page says
GUIDANCE_EMBEDDER = 256 * 3072 + 3072 + 3072 * 3072 + 3072
FLUX = {PAPER: PUBLISHED_FLUX, FREE: PUBLISHED_FLUX - GUIDANCE_EMBEDDER}
LORA_512 = 512 * (3072 + 3072) * (19 * 4 + 38 * 3)  # q, k, v, out of 19 double blocks; q, k, v of 38 single ones
PUBLISHED_VAE_BYTES = 167_666_902  # FLUX.1's VAE, its bfloat16 file with header


@pytest.fixture(scope="module", params=[PAPER, FREE])
def named(request) -> tuple[str, SubjectModel]:
    return request.param, meta_model(load_preset(request.param))


def dla(num_layers: int, mllm_width: int, width: int, out: int = 4096) -> tuple[int, int]:
    """Parameters of a Dual Layer Aggregation and of its bridge, by hand."""
    hidden = -(-8 * width // 24) * 8
    block = 2 * width + 4 * width**2 + 3 * hidden * width
    pooling = num_layers * mllm_width + width * mllm_width + num_layers
    bridge = width + width**2 + width + width * out + out
    return 2 * (pooling + 4 * block), 2 * bridge


def test_parameters_equal_what_is_published(named) -> None:
    name, model = named
    counts = count_parameters(model)
    layers, width = {PAPER: (29, 3584), FREE: (37, 4096)}[name]
    aggregator, bridge = dla(layers, width, 1536)
    assert counts == {
        "mllm": PUBLISHED_MLLM[name] - HEAD[name],
        "aggregator": aggregator,
        "bridge": bridge,
        "transformer": FLUX[name],
        "lora": LORA_512,
        "trainable": aggregator + bridge + LORA_512,
    }
    assert all(parameter.is_meta for parameter in model.parameters())
    vae = sum(parameter.numel() for parameter in meta_vae(load_preset(name)).parameters())
    assert 0 < PUBLISHED_VAE_BYTES - 2 * vae < 64 * 1024


@pytest.mark.parametrize(("width", "millions"), [(1536, 255), (3584, 1314)])
def test_dla_at_both_inner_widths(width: int, millions: int) -> None:
    with torch.device("meta"):
        aggregator = LayerAggregator(inner_width=width)
    count = sum(parameter.numel() for parameter in aggregator.parameters())
    assert count == sum(dla(29, 3584, width))
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("side", [512, 1024])
@pytest.mark.parametrize("references", [1, 2, 3, 4])
def test_shapes_and_tokens_by_stage(named, side: int, references: int) -> None:
    name, model = named
    sample = Sample.of(load_preset(name), references, height=side, width=side)
    image, context = (side // 16) ** 2, 256 * references + 64
    found = {stage: sample.tokens(mllm=stage[0], references=stage[1]) for stage in ((1, 0), (1, 1), (0, 1), (0, 0))}
    assert found == {
        (1, 0): image + context,
        (1, 1): image * (1 + references) + context,
        (0, 1): image * (1 + references),
        (0, 0): image,
    }
    with torch.no_grad():
        tokens = context_of(model, sample)
        assert tokens.tokens.shape == (1, context, 4096)
        blocks = model.transformer.transformer_blocks, model.transformer.single_transformer_blocks
        model.transformer.transformer_blocks, model.transformer.single_transformer_blocks = blocks[0][:1], blocks[1][:1]
        try:
            assert denoise(model, sample, tokens, references=True).shape == (1, image, 64)
            assert denoise(model, sample, None, references=False).shape == (1, image, 64)
        finally:
            model.transformer.transformer_blocks, model.transformer.single_transformer_blocks = blocks


def flux_flops(transformer: nn.Module, image: int, text: int, target: int) -> int:
    """A multiply-add is two: every linear layer on the tokens of its stream, and attention over all of them."""
    width, total = transformer.inner_dim, 0
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name.startswith(("time_text_embed", "norm_out")) or ".norm" in name:
            tokens = 1
        elif name.startswith("single_transformer_blocks"):
            tokens = image + text
        elif name == "context_embedder" or "add_" in name or "ff_context" in name:
            tokens = text
        else:
            tokens = image
        total += 2 * tokens * module.in_features * module.out_features
    blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    return total + blocks * 4 * (image + text) ** 2 * width


@pytest.mark.parametrize("name", ["mini", PAPER])
def test_flops_equal_a_formula(name: str) -> None:
    preset = dataclasses.replace(load_preset(name), lora=None)
    model, sample = meta_model(preset), Sample.of(preset, 2)
    for mllm, references in ((True, False), (True, True), (False, True)):
        image = sample.image + references * sample.reference
        expected = flux_flops(model.transformer, image, mllm * sample.context, sample.image)
        assert denoising_flops(model, sample, mllm=mllm, references=references) == expected
    # forward, gradients of weights and of inputs: each layer's learned scale asks for those of the first too
    assert aggregator_flops(model, sample, backward=True) == 3 * aggregator_flops(model, sample)


def test_flops_of_all_blocks_are_extrapolated_from_a_few() -> None:
    preset = load_preset("mini")
    model, sample = meta_model(preset), Sample.of(preset)
    context = torch.empty(1, sample.context, 192, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        seen = Context(context, torch.ones(1, sample.context, dtype=torch.bool, device="meta"))
        denoise(model, sample, seen, references=True).sum().backward()
    assert denoising_flops(model, sample, mllm=True, references=True, backward=True) == counter.get_total_flops()


def test_flops_of_the_encoder_are_two_for_each_weight_and_token(named) -> None:
    name, model = named
    sample = Sample.of(load_preset(name), 1)
    vision = {PAPER: (304_012_288, 1025, 24 * 1024), FREE: (576_388_336, 1024, 27 * 1152)}[name]
    config = model.mllm.config.get_text_config()
    text = sum(p.numel() for n, p in model.mllm.language_model.named_parameters() if "embed" not in n)
    expected = 2 * text * sample.context + 4 * sample.context**2 * config.hidden_size * config.num_hidden_layers
    expected += 2 * vision[0] * vision[1] + 4 * vision[1] ** 2 * vision[2]
    assert mllm_flops(model, sample) == pytest.approx(expected, rel=0.05)
