"""Images of several personal models in one batch: each is the one that its model generates alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from lookalike.bundles.build import materialise
from lookalike.bundles.locate import locate_bundle
from lookalike.bundles.manifest import ADAPTER, BundleReference, read_manifest, read_preset, write_manifest
from lookalike.diffusion.loading import load_pipeline
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.diffusion.stacked import PersonalImage, StackedPipeline
from lookalike.errors import InputError
from lookalike.models.adapter_files import read_adapter
from lookalike.models.adapter_state import adapter_state
from lookalike.models.adapters import ADAPTER_NAME, load_adapter, write_adapter
from lookalike.models.presets import LoraConfig, load_preset
from tests.personal import personal_bundle

LORAS = (
    LoraConfig(rank=4),
    LoraConfig(rank=16, alpha=4.0),
    LoraConfig(rank=8, target_modules=("to_q", "add_k_proj")),
)
SETTINGS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return materialise(load_preset("mini"), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def models(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[BundleReference]:
    """A personal model for each of LORAS, and the base itself."""
    folder = tmp_path_factory.mktemp("personal")
    places = [personal_bundle(base, folder / str(seed), seed, lora=lora) for seed, lora in enumerate(LORAS)]
    return [locate_bundle(str(place)) for place in [*places, base]]


@pytest.fixture(scope="module")
def pipe(models: list[BundleReference]) -> StackedPipeline:
    return StackedPipeline(models[-1], "cpu", 1 << 30)


@pytest.fixture
def image_of(models: list[BundleReference], pictures: Callable[..., list[np.ndarray]]) -> Callable[..., PersonalImage]:
    """``image_of(2, seed=1)``: an image of the third model, with a prompt and references of that subject."""

    def make(number: int, seed: int = 0) -> PersonalImage:
        prompt = ["a red mug", "a toy on the wet sand of a beach"][number % 2]
        return PersonalImage(models[number], prompt, pictures(1 + number % 2, seed=number), seed)

    return make


def alone(image: PersonalImage, **settings: object) -> np.ndarray:
    """The image by peft's layers on a pipeline of its own."""
    done = load_pipeline(image.bundle, "cpu")(
        image.prompt, list(image.references), seeds=[image.seed], **(SETTINGS | settings)
    )
    return np.asarray(done.images[0], int)


def apart(one: object, other: object) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0, "stages": "both"}])
def test_each_image_is_the_one_that_its_model_generates_alone(
    pipe: StackedPipeline, image_of: Callable[..., PersonalImage], settings: dict[str, object]
) -> None:
    images = [image_of(2), image_of(0), image_of(3), image_of(0, seed=5), image_of(1)]  # not side by side
    done = pipe(images, **SETTINGS, **settings)
    expected = [alone(image, **settings) for image in images]
    assert max(apart(*pair) for pair in zip(done, expected, strict=True)) <= 1
    assert min(apart(expected[0], other) for other in expected[1:]) > 30


def test_an_adapter_reaches_its_own_image_only_in_any_order(
    pipe: StackedPipeline, image_of: Callable[..., PersonalImage]
) -> None:
    """Prompt, photos and seed are equal, so that the images differ by their adapters alone."""
    one = image_of(0)
    other = replace(one, bundle=image_of(1).bundle)
    first, second = pipe([one, other], **SETTINGS)
    swapped, back = pipe([other, one], **SETTINGS)
    assert apart(first, back) <= 1
    assert apart(second, swapped) <= 1
    assert apart(first, second) > 30
    assert apart(first, alone(one)) <= 1


def test_an_image_does_not_change_by_one_that_fails_beside_it(
    pipe: StackedPipeline, image_of: Callable[..., PersonalImage], base: Path, tmp_path: Path
) -> None:
    huge = personal_bundle(base, tmp_path / "huge", 9, scale=1e20)  # its numbers become infinite
    expected = pipe([image_of(0), image_of(1)], **SETTINGS)
    beside = replace(image_of(1), bundle=locate_bundle(str(huge)))
    done = pipe([image_of(0), beside, image_of(1)], **SETTINGS)
    assert apart(done[0], expected[0]) <= 1
    assert apart(done[2], expected[1]) <= 1


def test_adapters_in_memory_are_bounded_and_those_used_last_stay(
    models: list[BundleReference], image_of: Callable[..., PersonalImage]
) -> None:
    small = StackedPipeline(models[-1], "cpu", 1 << 30)
    sizes = [small.load(model).size for model in models[:3]]  # type: ignore[union-attr]
    assert small.adapter_bytes == sum(sizes)
    small._max_bytes = sizes[0] + sizes[1]
    first = small.load(models[0])
    assert small.load(models[0]) is first
    assert small.adapter_bytes == sizes[0] + sizes[2]  # the second was used least recently
    small._max_bytes = 1
    done = small([image_of(number) for number in range(3)], **SETTINGS)  # more than fit beside each other
    assert small.adapter_bytes == sizes[2]
    assert apart(done[0], alone(image_of(0))) <= 1


def test_a_lora_of_the_base_is_not_an_adapter_of_personal_models(
    base: Path, models: list[BundleReference], image_of: Callable[..., PersonalImage], tmp_path: Path
) -> None:
    whole = SubjectPipeline.from_pretrained(base)
    lora = personal_bundle(base, tmp_path / "lora", 7) / ADAPTER
    load_adapter(whole.transformer, read_adapter(lora, whole.transformer))
    whole.save_pretrained(tmp_path / "whole")
    mine = locate_bundle(str(personal_bundle(tmp_path / "whole", tmp_path / "mine", 8)))
    both = StackedPipeline(locate_bundle(str(tmp_path / "whole")), "cpu", 1 << 30)
    images = [replace(image_of(0), bundle=both.base), replace(image_of(0), bundle=mine)]
    done = both(images, **SETTINGS)
    assert max(apart(result, alone(image)) for result, image in zip(done, images, strict=True)) <= 1


def test_cached_references_go_through_the_adapter_of_their_row(
    image_of: Callable[..., PersonalImage], tmp_path: Path
) -> None:
    preset = load_preset("mini")
    preset = replace(preset, references=replace(preset.references, attention="cached"))
    cached = materialise(preset, tmp_path / "cached")
    places = [personal_bundle(cached, tmp_path / str(seed), seed) for seed in (0, 1)]
    images = [replace(image_of(number), bundle=locate_bundle(str(place))) for number, place in enumerate(places)]
    done = StackedPipeline(images[0].bundle.whole, "cpu", 1 << 30)(images, **SETTINGS)
    assert max(apart(result, alone(image)) for result, image in zip(done, images, strict=True)) <= 1


def test_a_damaged_adapter_and_one_that_cannot_be_stacked_are_refused(
    pipe: StackedPipeline, base: Path, tmp_path: Path
) -> None:
    damaged = locate_bundle(str(personal_bundle(base, tmp_path / "damaged", 5)))
    weights = tmp_path / "damaged" / ADAPTER / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors has changed"):
        pipe.load(damaged)

    folder, transformer = personal_bundle(base, tmp_path / "dora", 6), pipe.pipe.transformer
    settings = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], use_dora=True, init_lora_weights=False)
    transformer.add_adapter(settings, adapter_name=ADAPTER_NAME)
    file = adapter_state(transformer, ADAPTER_NAME)
    transformer.unload_lora()
    write_adapter(folder / ADAPTER, file.settings, file.tensors)
    manifest = read_manifest(folder)
    write_manifest(folder, read_preset(folder), BundleReference(str(base), manifest["base"]["sha256"]))
    with pytest.raises(InputError, match="use_dora, which cannot be beside others"):
        pipe.load(locate_bundle(str(folder)))
