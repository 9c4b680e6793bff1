import dataclasses
from typing import Any

import pytest
import torch

from lookalike.bundles.load import build_model, load_model, load_preprocessor
from lookalike.errors import ConfigError
from lookalike.models.batch import Batch, to_batch
from lookalike.models.dit import References
from lookalike.models.joint import hidden_states
from lookalike.models.presets import LoraConfig
from lookalike.models.subject import SubjectModel


@pytest.fixture(scope="module")
def model(bundle_dir, perturb) -> SubjectModel:
    model = load_model(bundle_dir)
    perturb(model.transformer)
    perturb(model.aggregator)
    return model


@pytest.fixture
def batch(bundle_dir, pictures) -> Batch:
    images = pictures(5)
    references = [images[:1], images[1:3], []]
    prompts = ["a red mug", "a blue box on the wet sand of a beach", "a dog"]
    return to_batch(load_preprocessor(bundle_dir)(prompts, references, images[2:5]))


def forward(
    model: SubjectModel,
    batch: Batch,
    rows: list[int],
    *,
    use_references: bool = True,
    reference_keep: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy, latents = torch.randn(3, 64, 16, generator=generator), torch.randn(3, 2, 64, 16, generator=generator)
    slots = batch.references.shape[1]
    sigma = torch.tensor([0.9, 0.5, 0.2])
    mask = batch.reference_mask if reference_keep is None else batch.reference_mask & reference_keep[:, None]
    references = References(latents[rows][:, :slots], mask, (8, 8)) if use_references else None
    return model(batch, noisy[rows], sigma[rows], references, (8, 8), **options)


@torch.no_grad()
def test_mixed_reference_counts_equal_one_by_one(model, batch, bundle_dir, pictures) -> None:
    together = forward(model, batch, [0, 1, 2])
    preprocessor, images = load_preprocessor(bundle_dir), pictures(5)
    prompts = ["a red mug", "a blue box on the wet sand of a beach", "a dog"]
    for row, references in enumerate([images[:1], images[1:3], []]):
        alone = to_batch(preprocessor([prompts[row]], [references]))
        assert alone.references.shape[1] == max(1, len(references))
        torch.testing.assert_close(forward(model, alone, [row])[0], together[row], rtol=0, atol=1e-4)


@torch.no_grad()
def test_dropped_conditions_equal_conditions_that_are_not_computed(model, batch) -> None:
    none = torch.zeros(3, dtype=torch.bool)
    rows = [0, 1, 2]
    assert_same = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-5)  # noqa: E731
    assert_same(forward(model, batch, rows, mllm_keep=none), forward(model, batch, rows, use_mllm=False))
    assert_same(forward(model, batch, rows, reference_keep=none), forward(model, batch, rows, use_references=False))
    keep = torch.tensor([True, False, True])
    mixed = forward(model, batch, rows, mllm_keep=keep)
    assert_same(mixed[0], forward(model, batch, rows)[0])
    assert_same(mixed[1], forward(model, batch, rows, use_mllm=False)[1])


@torch.no_grad()
def test_text_sees_the_images_before_it_and_images_do_not_see_the_text(model, batch) -> None:
    text_only = dataclasses.replace(batch, tiles=255 - batch.tiles)
    other_text = batch.input_ids.clone()
    other_text[0, int(batch.attention_mask[0].sum()) - 2] = 300
    images_only = dataclasses.replace(batch, input_ids=other_text)
    base, pixels, words = (hidden_states(model.mllm, b)[-1][0] for b in (batch, text_only, images_only))
    image, text = batch.image_mask[0] & batch.attention_mask[0], batch.attention_mask[0] & ~batch.image_mask[0]
    last_word = int(text.nonzero()[-2])
    assert (pixels - base)[last_word].abs().max() > 1e-4
    assert torch.equal(words[image], base[image])


def test_only_trainable_parts_get_gradients(model, batch) -> None:
    named = model.set_trainable(("aggregator", "transformer"))
    model.train()
    try:
        assert not model.mllm.training
        forward(model, batch, [0, 1, 2]).square().mean().backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert set(named) == {n for n, _ in model.named_parameters() if not n.startswith("mllm.")}
        assert without == {name for name, _ in model.named_parameters() if name.startswith("mllm.")}
    finally:
        model.zero_grad()
        model.set_trainable(())
        model.eval()


def test_the_vae_is_not_part_of_the_trained_module(model) -> None:
    assert {name for name, _ in model.named_children()} == {"mllm", "aggregator", "transformer"}


@pytest.mark.parametrize("attention", ["full", "cached"])
def test_every_batch_runs_the_same_modules_in_the_same_order(bundle_dir, batch, perturb, attention) -> None:
    """Ranks of ZeRO-3 gather each module's weights together: one that runs another than the rest waits for ever."""
    model = load_model(bundle_dir)
    perturb(model.transformer)
    model.references = dataclasses.replace(model.references, attention=attention)
    trainable = model.set_trainable(("aggregator", "transformer"))
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))

    def run(given: Batch, rows: list[int], **options: Any) -> tuple[list[str], list[str]]:
        called.clear()
        model.zero_grad()
        forward(model, given, rows, **options).square().mean().backward()
        return list(called), [name for name, parameter in trainable.items() if parameter.grad is not None]

    none = torch.zeros(3, dtype=torch.bool)
    everything = run(batch, [0, 1, 2])
    assert everything[1] == list(trainable)
    assert run(batch, [0, 1, 2], mllm_keep=none, reference_keep=none) == everything
    without_reference = to_batch(load_preprocessor(bundle_dir)(["a dog"], [[]]))
    assert run(without_reference, [2]) == everything


def test_gradient_checkpointing_changes_no_gradient(bundle_dir, batch, perturb) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_model(bundle_dir)
        perturb(model.transformer)
        named = model.set_trainable(("aggregator", "transformer"))
        model.train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        forward(model, batch, [0, 1, 2]).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in named.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_lora_starts_as_nothing_and_trains_alone(bundle_dir, batch) -> None:
    model = load_model(bundle_dir)
    with pytest.raises(ConfigError, match="no LoRA"):
        model.set_trainable(("transformer_lora",))
    with torch.no_grad():
        before = forward(model, batch, [0, 1, 2])
        model.add_lora(LoraConfig(rank=4))
        torch.testing.assert_close(forward(model, batch, [0, 1, 2]), before)
    named = model.set_trainable(("transformer_lora",))
    assert named
    assert all(".lora_" in name for name in named)
    with pytest.raises(ConfigError, match="exceeds the attention width 192"):
        load_model(bundle_dir).add_lora(LoraConfig(rank=193))


@torch.no_grad()
def test_half_precision_follows_full(bundle_dir, batch, model) -> None:
    half = build_model(bundle_dir, torch.bfloat16)
    half.load_state_dict(model.state_dict())
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    found, expected = (forward(m.eval(), batch, [0, 1, 2]).float() for m in (half, model))
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()
