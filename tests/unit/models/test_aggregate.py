import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lookalike.errors import ConfigError
from lookalike.models.aggregate import LayerAggregator
from lookalike.models.aggregators import AGGREGATORS

B, N, L, C, D, E, HEAD, IMAGES = 2, 5, 9, 24, 16, 20, 8, 4


@pytest.fixture
def inputs() -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(B, L, C, generator=generator) * 3**n for n in range(N)]  # raw norms differ by layer
    image_mask = torch.zeros(B, L, dtype=torch.bool)
    image_mask[0, 1:5] = True
    image_mask[1, 2:4] = image_mask[1, 6:8] = True
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[0, 7:] = mask[1, 6:] = False
    return layers, mask, image_mask


def build(kind: str, perturb) -> LayerAggregator:
    torch.manual_seed(0)
    aggregator = LayerAggregator(kind, N, C, E, D, HEAD)
    return perturb(aggregator, 0.1).eval()


@torch.no_grad()
def test_dla_equals_a_literal_loop(inputs, perturb) -> None:
    layers, mask, image_mask = inputs
    aggregator = build("dla", perturb)
    found = aggregator(layers, mask, image_mask, IMAGES)
    assert found.shape == (B, L, E)
    for row in range(B):
        for modality, chosen in (("image", image_mask[row]), ("text", ~image_mask[row])):
            positions = [p for p in range(L) if chosen[p]]
            expected = literal_branch(aggregator.branches[modality], layers, row, positions, mask[row])
            for position, token in zip(positions, expected, strict=True):
                torch.testing.assert_close(found[row, position], token, rtol=1e-5, atol=1e-5)


def literal_branch(branch, layers: list[Tensor], row: int, positions: list[int], mask: Tensor) -> list[Tensor]:
    """A LAP with its refiner, token by token and key by key."""
    stack = branch.pooling.stack
    tokens = []
    for position in positions:
        stacked = []
        for n in range(N):
            hidden = layers[n][row, position]
            normed = hidden / torch.sqrt(hidden.square().mean() + 1e-6) * stack.scale[n]
            stacked.append(stack.weight @ normed)
        for block in branch.pooling.blocks:
            stacked = literal_block(block, stacked, [True] * N)
        tokens.append(sum(branch.pooling.collapse.weight[0, n] * stacked[n] for n in range(N)))
    visible = [bool(mask[position]) for position in positions]
    for block in branch.refiners:
        tokens = literal_block(block, tokens, visible if any(visible) else [True] * len(visible))
    return [branch.mlp(branch.norm(token)) for token in tokens]


def literal_block(block, tokens: list[Tensor], visible: list[bool]) -> list[Tensor]:
    normed = [block.attention_norm(token) for token in tokens]
    query, key, value = (
        [(weight @ token).view(-1, HEAD) for token in normed] for weight in block.attention.qkv.weight.chunk(3)
    )
    attended = []
    for i, token in enumerate(tokens):
        heads = []
        for h in range(D // HEAD):
            scores = [
                torch.exp(query[i][h] @ key[j][h] / math.sqrt(HEAD)) if visible[j] else 0.0 for j in range(len(tokens))
            ]
            total = sum(scores)
            heads.append(sum(scores[j] / total * value[j][h] for j in range(len(tokens))))
        attended.append(token + block.attention.out(torch.cat(heads)))
    result = []
    for token in attended:
        gate, up = block.mlp.gate_up(block.mlp_norm(token)).chunk(2)
        result.append(token + block.mlp.down(torch.sigmoid(gate) * gate * up))
    return result


@pytest.mark.parametrize("kind", AGGREGATORS)
@torch.no_grad()
def test_masked_tokens_change_no_real_token(kind: str, inputs, perturb) -> None:
    layers, mask, image_mask = inputs
    aggregator = build(kind, perturb)
    changed = [torch.where(mask[..., None], layer, torch.randn_like(layer)) for layer in layers]
    before, after = (aggregator(given, mask, image_mask, IMAGES) for given in (layers, changed))
    torch.testing.assert_close(before[mask], after[mask])
    assert not torch.allclose(before[~mask], after[~mask])


@torch.no_grad()
def test_a_modality_without_any_real_token_stays_finite(inputs, perturb) -> None:
    layers, mask, image_mask = inputs
    assert build("dla", perturb)(layers, mask & ~image_mask, image_mask, IMAGES).isfinite().all()


@torch.no_grad()
def test_aggregators_depend_on_the_layers_that_they_name(inputs, perturb) -> None:
    layers, mask, image_mask = inputs
    for kind in AGGREGATORS:
        aggregator = build(kind, perturb)
        before = aggregator(layers, mask, image_mask, IMAGES)
        after = aggregator([layers[0] + 1, *layers[1:]], mask, image_mask, IMAGES)
        assert torch.equal(before, after) == (kind == "last_layer")


def test_layer_weights_are_read_by_modality(perturb) -> None:
    weights = build("dla", perturb).layer_weights()
    assert set(weights) == {"text", "image"}
    assert weights["text"].shape == (N,)
    with pytest.raises(ConfigError, match="no layer weights"):
        build("layer_mean", perturb).layer_weights()


def test_layer_weights_are_plotted_by_modality(perturb) -> None:
    axes = Figure().add_subplot()
    aggregator = build("dla", perturb)
    aggregator.plot(axes)
    lines = {line.get_label(): line.get_ydata() for line in axes.lines[:2]}
    for name, weights in aggregator.layer_weights().items():
        assert lines[name] == pytest.approx(weights.numpy())


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        for inner, millions in ((3584, 1288), (1536, 255)):
            aggregator = LayerAggregator(num_layers=29, mllm_width=3584, out_width=4096, inner_width=inner)
            # at the full width the projection is ours on top of the published count
            extra = 2 * 3584 * 3584 if inner == 3584 else 0
            found = (sum(p.numel() for p in aggregator.parameters()) - extra) / 1e6
            assert found == pytest.approx(millions, abs=1.0)


def test_saves_and_loads_as_a_diffusers_model(tmp_path, perturb) -> None:
    aggregator = build("dla", perturb)
    aggregator.save_pretrained(tmp_path)
    again = LayerAggregator.from_pretrained(tmp_path)
    for name, tensor in aggregator.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=f"use one of {', '.join(AGGREGATORS)}"):
        LayerAggregator("cls")
