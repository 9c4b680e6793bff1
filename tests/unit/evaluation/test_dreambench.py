"""DINO-I, CLIP-I and CLIP-T equal a straight computation with PIL and transformers, under each of their settings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from torch.nn.functional import cosine_similarity

from lookalike.errors import ConfigError
from lookalike.evaluation.metrics import LABELS, measure, metrics_of, protocols
from lookalike.evaluation.metrics.base import PROMPT_KINDS, Pixels, Task
from lookalike.evaluation.metrics.clip import Clip, ClipTextConfig
from lookalike.evaluation.metrics.dino import Dino, DinoConfig
from lookalike.evaluation.metrics.identity import Identity
from lookalike.evaluation.metrics.likeness import LikenessConfig
from lookalike.pixels import crop_resize

BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViTModel of DINO's shape (ViT-S/16 at 224 pixels), with two layers of random weights and no pooler."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=6)
    config.initializer_range = 0.15  # of 0.02 all images are alike to three digits
    folder = tmp_path_factory.mktemp("dino")
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pooler_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(1)
    config = ViTConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=96)
    config.initializer_range = 0.3
    folder = tmp_path_factory.mktemp("pooler")
    ViTModel(config).save_pretrained(folder)
    return folder


IMAGES: list[Pixels] = [photographs.chelsea()[:256, 40:296], photographs.coffee()[60:316, 100:356]]
CATS: list[Pixels] = [photographs.chelsea(), photographs.chelsea()[:, ::-1][20:, 15:], photographs.chelsea()[::2, ::2]]
CUPS: list[Pixels] = [photographs.coffee(), photographs.coffee()[:301, 55:]]
TASKS = [
    Task("0", "cat", "a sks cat in the snow", CATS[:1], CUPS, CATS, "cat", "a cat in the snow", "place"),
    Task("1", "cup", "a red cat", CUPS[1:], CATS, CUPS, "cup", "", "recolouring"),
]


def _straight_pixels(image: Pixels, resize: int, crop: int, resample: int, mean: Sequence[float], std: Sequence[float]):
    """What ``transforms.Resize, CenterCrop, ToTensor, Normalize`` of torchvision do to a PIL image."""
    photo = Image.fromarray(image)
    width, height = photo.size
    if width <= height:
        photo = photo.resize((resize, int(resize * height / width)), resample)
    else:
        photo = photo.resize((int(resize * width / height), resize), resample)
    left, top = round((photo.width - crop) / 2.0), round((photo.height - crop) / 2.0)
    tensor = torch.from_numpy(np.array(photo.crop((left, top, left + crop, top + crop)))).permute(2, 0, 1) / 255
    return ((tensor - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]


def _straight_dino(
    folder: Path,
    image: Pixels,
    photos: Sequence[Pixels],
    pool: Callable[[Any], torch.Tensor] = lambda output: output.last_hidden_state[:, 0],
    resize: int = 256,
    crop: int = 224,
    resample: int = BICUBIC,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> torch.Tensor:
    """Embeddings, the image's first."""
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder).eval()
    pixels = torch.cat([_straight_pixels(photo, resize, crop, resample, mean, std) for photo in (image, *photos)])
    with torch.no_grad():
        return pool(model(pixel_values=pixels, output_hidden_states=True))


def _pairwise(rows: torch.Tensor) -> float:
    return float(cosine_similarity(rows[:1], rows[1:]).mean())


def _dino(folder: Path, tasks: Sequence[Task] = TASKS, **config: Any) -> list[float]:
    return [row["dino_i"] for row in Dino(str(folder), DinoConfig(**config))(IMAGES, tasks)]


def _expected(folder: Path, photos: str = "photos", **options: Any) -> list[float]:
    return [
        _pairwise(_straight_dino(folder, image, getattr(task, photos), **options))
        for image, task in zip(IMAGES, TASKS, strict=True)
    ]


def test_dino_i_by_default_is_that_of_the_paper(dino_folder: Path) -> None:
    """All photos of the subject at the size of their files, CLS token, 256 bicubic, crop 224, mean of the cosines."""
    found = _dino(dino_folder)
    assert found == pytest.approx(_expected(dino_folder), abs=1e-4)
    assert 0.05 < found[0] < 0.99
    assert abs(found[0] - found[1]) > 0.01


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"references": "given"}, {"photos": "references"}),
        ({"layer": 1}, {"pool": lambda output: output.hidden_states[1][:, 0]}),
        ({"layer": -2, "pooling": "mean"}, {"pool": lambda output: output.hidden_states[-2].mean(1)}),
        ({"pooling": "mean"}, {"pool": lambda output: output.last_hidden_state.mean(1)}),
        ({"resize": 224}, {"resize": 224}),
        ({"interpolation": "bilinear"}, {"resample": Image.Resampling.BILINEAR}),
        ({"interpolation": "nearest"}, {"resample": Image.Resampling.NEAREST}),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, {"mean": [0.5] * 3, "std": [0.5] * 3}),
    ],
)
def test_each_setting_of_dino_i_is_what_it_says(dino_folder: Path, config: dict, expected: dict) -> None:
    found = _dino(dino_folder, **config)
    assert found == pytest.approx(_expected(dino_folder, **expected), abs=1e-4)
    assert not np.allclose(found, _dino(dino_folder), atol=2e-4)  # the setting matters in this test


def test_dino_i_to_the_mean_embedding_and_at_the_size_of_the_image(dino_folder: Path) -> None:
    rows = [_straight_dino(dino_folder, image, task.photos) for image, task in zip(IMAGES, TASKS, strict=True)]
    units = [torch.nn.functional.normalize(row, dim=1) for row in rows]
    expected = [float(cosine_similarity(unit[:1], unit[1:].mean(0, keepdim=True))) for unit in units]
    assert _dino(dino_folder, aggregation="mean_embedding") == pytest.approx(expected, abs=1e-4)
    resized = [
        [crop_resize(photo, *image.shape[:2]) for photo in t.photos] for image, t in zip(IMAGES, TASKS, strict=True)
    ]
    expected = [_pairwise(_straight_dino(dino_folder, *pair)) for pair in zip(IMAGES, resized, strict=True)]
    assert _dino(dino_folder, photo_size="image") == pytest.approx(expected, abs=1e-4)
    assert not np.allclose(_dino(dino_folder), expected, atol=2e-4)


def test_dino_i_by_the_pooler_and_of_another_size(pooler_folder: Path) -> None:
    options = {"resize": 100, "crop": 96}
    expected = _expected(pooler_folder, pool=lambda output: output.pooler_output, **options)
    found = _dino(pooler_folder, pooling="pooler", **options)
    assert found == pytest.approx(expected, abs=1e-4)
    assert not np.allclose(found, _dino(pooler_folder, **options), atol=2e-4)


def test_subject_without_further_photos_is_compared_with_its_references(dino_folder: Path) -> None:
    tasks = [Task(task.case, task.subject, task.prompt, task.references, []) for task in TASKS]
    assert _dino(dino_folder, tasks) == pytest.approx(_expected(dino_folder, "references"), abs=1e-4)


def _straight_clip(folder: Path, image: Pixels, photos: Sequence[Pixels], prompt: str) -> tuple[float, float]:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pixels = processor(images=[Image.fromarray(photo) for photo in (image, *photos)], return_tensors="pt")
    with torch.no_grad():
        rows = model.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output
        ids = tokenizer([prompt], return_tensors="pt")
        text = model.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).pooler_output
    return _pairwise(rows), float(cosine_similarity(rows[:1], text))


@pytest.mark.parametrize("references", ["all", "given"])
@pytest.mark.parametrize("prompt", ["prompt", "plain"])
def test_clip_i_and_clip_t_are_those_of_transformers(clip_folder: Path, references: str, prompt: str) -> None:
    clip = Clip(str(clip_folder), LikenessConfig(references=references), ClipTextConfig(prompt=prompt))  # type: ignore[arg-type]
    for image, task, row in zip(IMAGES, TASKS, clip(IMAGES, TASKS), strict=True):
        photos = task.photos if references == "all" else task.references
        text = task.plain_prompt or task.prompt if prompt == "plain" else task.prompt
        clip_i, clip_t = _straight_clip(clip_folder, image, photos, text)
        assert row["clip_i"] == pytest.approx(clip_i, abs=1e-4)
        assert row["clip_t"] == pytest.approx(clip_t, abs=1e-4)


def test_the_settings_of_clip_matter(clip_folder: Path) -> None:
    default = Clip(str(clip_folder))(IMAGES, TASKS)
    given = Clip(str(clip_folder), LikenessConfig(references="given"))(IMAGES, TASKS)
    plain = Clip(str(clip_folder), None, ClipTextConfig(prompt="plain"))(IMAGES, TASKS)
    assert abs(default[0]["clip_i"] - given[0]["clip_i"]) > 2e-4
    assert abs(default[0]["clip_t"] - plain[0]["clip_t"]) > 2e-4
    assert plain[1]["clip_t"] == default[1]["clip_t"]  # it has no plain prompt


def test_prompt_following_is_also_measured_by_kind_of_prompt(clip_folder: Path) -> None:
    unknown = Task("2", "cup", "a hat", CUPS, [])
    rows = Clip(str(clip_folder))([*IMAGES, IMAGES[0]], [*TASKS, unknown])
    assert [{name for name in row if name.startswith("clip_t_")} for row in rows] == [
        {"clip_t_place"},
        {"clip_t_recolouring"},
        set(),
    ]
    assert rows[0]["clip_t_place"] == rows[0]["clip_t"]
    assert {f"clip_t_{kind}" for kind in PROMPT_KINDS} <= LABELS.keys()
    with pytest.raises(ConfigError, match="no such kind of prompt"):
        Task("3", "cup", "a hat", CUPS, [], prompt_kind="weather")


def test_long_and_broken_prompts_are_measured(clip_folder: Path) -> None:
    clip = Clip(str(clip_folder))
    texts = ["a cat " * 50_000, "a \udce9 cat", "<end> cat <pad>"]
    found = clip(IMAGES[:1] * 3, [Task(str(i), "cat", text, CATS, []) for i, text in enumerate(texts)])
    assert np.isfinite([row["clip_t"] for row in found]).all()


@pytest.mark.parametrize("kind", ["identity", "dino", "clip"])
def test_values_do_not_depend_on_the_other_images_of_a_call(dino_folder: Path, clip_folder: Path, kind: str) -> None:
    settings = _settings(dino=str(dino_folder), clip=str(clip_folder))
    index = ["identity", "dino", "clip"].index(kind)
    together = metrics_of(settings)[index](IMAGES, TASKS)
    alone = [metrics_of(settings)[index]([image], [task])[0] for image, task in zip(IMAGES, TASKS, strict=True)]
    assert list(together) == alone  # bit by bit


def _settings(**changes: Any) -> Any:
    return SimpleNamespace(
        **{"embedder": "efficientnet-lite0-colour", "clip": None, "dino": None, "metrics": {}} | changes
    )


def test_result_states_every_choice(dino_folder: Path, clip_folder: Path) -> None:
    metrics = {"dino_i": {"references": "given", "resize": 230}, "clip_t": {"prompt": "plain"}}
    settings = _settings(dino=str(dino_folder), clip=str(clip_folder), metrics=metrics)
    found = protocols(metrics_of(settings))
    assert found.keys() == {"identity", "dino_i", "clip_i", "copying"}
    dino = found["dino_i"]
    assert dino["model"].startswith(f"{dino_folder.name}@")
    assert dino["class"] == "ViTModel"
    names = ("references", "aggregation", "photo_size", "layer", "pooling", "resize", "crop", "interpolation")
    assert [dino[name] for name in names] == ["given", "pairwise", "file", -1, "cls", 230, 224, "bicubic"]
    assert dino["mean"] == [0.485, 0.456, 0.406]
    clip = found["clip_i"]
    assert clip["image_processor"]["crop_size"] == {"height": 64, "width": 64}
    assert clip["image_processor"]["resample"] == BICUBIC
    assert clip["clip_i"]["references"] == "all"
    assert clip["clip_t"] == {"prompt": "plain"}
    assert clip["text_tokens"] == 16
    assert found["identity"]["model"].startswith("efficientnet-lite0")
    assert (found["identity"]["references"], found["identity"]["photo_size"]) == ("given", "image")
    assert json.loads(json.dumps(found)) == found  # as scores.json gives it back


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop": 96}, r"metrics.dino_i does not fit the model .*224.*crop=96.*set crop"),
        ({"layer": 7}, r"metrics.dino_i does not fit the model .*layer=7"),
        ({"pooling": "pooler"}, r"the model has no weights of a pooler"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(dino_folder: Path, config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Dino(str(dino_folder), DinoConfig(**config))


def test_model_of_another_kind_is_refused(dino_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit the model"):
        Dino(str(clip_folder))
    with pytest.raises(ConfigError, match="CLIP model"):
        Clip(str(dino_folder))
    for kind in (Dino, Clip):
        with pytest.raises(ConfigError, match="there is no such"):
            kind(str(tmp_path))


def test_checkpoint_that_lacks_a_weight_is_refused(dino_folder: Path, tmp_path: Path) -> None:
    """It would be random, and so would the values."""
    from safetensors.torch import load_file, save_file

    for file in dino_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    removed = next(name for name in weights if "encoder" in name and "layer.1" in name)
    del weights[removed]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights that its class needs: .*layers?.1.* \(1 missing\)"):
        Dino(str(tmp_path))


def test_a_metric_without_photos_is_left_out(dino_folder: Path, clip_folder: Path) -> None:
    task = Task("c", "s", "a cat", [], [])
    metrics = [Identity(_settings_embedder()), Dino(str(dino_folder)), Clip(str(clip_folder))]
    rows = measure(metrics, IMAGES[:1], [task])  # type: ignore[arg-type]
    assert [row.metric for row in rows] == ["clip_t"]


def _settings_embedder() -> Any:
    from lookalike.annotators.embedder import load_embedder

    return load_embedder("efficientnet-lite0-colour")
