"""``dino_i``: DINO-I of DreamBench, the cosine of the embeddings of an image and real photos of its subject by a DINO.

Formula: see ``likeness.py``. Range: -1 to 1, higher is more alike. Source: Ruiz et al. 2023 (DreamBooth), section 4.2,
which names ViT-S/16 DINO (Caron et al. 2021; ``facebook/dino-vits16``) and all real photos of the subject. DreamBench++
(Peng et al. 2024, ``dreambench_plus/metrics/dino_score.py``) has ViT-S/8 and one reference: its numbers are not
comparable with the former's. Preprocessing is that of DINO's ``eval_knn.py`` and of DreamBench++: bicubic to 256 pixels
on the short side, centre crop of 224, ImageNet's mean and standard deviation. The embedding is the CLS token after the
final norm, which DINO's hub model returns. The model is the user's. Transformers' copies of DINO have the hub's weights
but another epsilon in their layer norms, and image processors that stretch to 224 x 224 instead of cropping; these
processors are not used.

It cannot see: whether the image was pasted from a photo (which scores highest), whether it follows the prompt, and what
the crop leaves out. Background and pose count too: the subject on another background scores lower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le
from PIL import Image

from lookalike.annotators.hub import load_weights, model_revision
from lookalike.errors import ConfigError, first_line
from lookalike.evaluation.metrics.base import Pixels, Settings, Task, exact, settings_of
from lookalike.evaluation.metrics.likeness import Embeddings, Likeness, LikenessConfig, Rows
from lookalike.values import Count, Positive, configuration

_RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")}


@configuration()
class DinoConfig(LikenessConfig):
    """How DINO-I is computed; the defaults are the published ones."""

    layer: Annotated[int, Ge(-1_000), Le(1_000)] = -1
    """Whose output is pooled: -1 the last one after its final norm, else the index of a hidden state (0: embedding of
    the patches)."""
    pooling: Literal["cls", "mean", "pooler"] = "cls"
    """``cls``: the CLS token; ``mean``: the mean of all tokens; ``pooler``: the model's own pooled output."""
    resize: Count = 256
    """Length of the short side in pixels after resizing."""
    crop: Count = 224
    """Side of the centre crop in pixels: the size of image that the model sees."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """Filter of the resizing (PIL, which always antialiases)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue of 0 to 1."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """By which the difference is divided."""

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise ConfigError("crop is larger than resize", value=self.crop, fix=f"use {self.resize} or less")
        if self.pooling == "pooler" and self.layer != -1:
            raise ConfigError("a pooler reads the last layer", value=self.layer, fix="leave layer out, or pool cls")


class Dino:
    """Similarity to real photos of the subject under a DINO model, by Hub id (``id@revision``) or folder.

    Any vision transformer of transformers' ``AutoModel`` fits. Raises ConfigError if it cannot be loaded, or does not
    fit the configuration.
    """

    labels: ClassVar[Mapping[str, str]] = {"dino_i": "DINO-I"}
    likeness: ClassVar[Sequence[str]] = ("dino_i",)
    configurations: ClassVar[Mapping[str, type]] = {"dino_i": DinoConfig}
    flag: ClassVar[str] = "dino"

    def __init__(self, name_or_path: str, config: DinoConfig | None = None, device: str = "cpu") -> None:
        self.config = config or DinoConfig()
        self.revision = model_revision(name_or_path, "DINO model")
        self._model, missing = _load(name_or_path, device)
        self._device = device
        if self.config.pooling == "pooler" and any("pooler" in name for name in missing):
            raise ConfigError(
                "metrics.dino_i.pooling: the model has no weights of a pooler", value=name_or_path, fix="pool cls"
            )
        self._check()
        self._likeness = Likeness(Embeddings(self._embed, device), self.config)

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Dino | None":
        config = settings_of(settings, "dino_i", DinoConfig, flag=cls.flag)
        return cls(settings.dino, config, device) if settings.dino else None

    def protocol(self) -> dict[str, Any]:
        """Every choice behind the values: the model's revision and class, and the resolved settings."""
        return {"model": self.revision, "class": type(self._model).__name__, **asdict(self.config)}

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        return [{} if value is None else {"dino_i": value} for value in self._likeness(images, tasks)]

    def _embed(self, images: Sequence[Pixels]) -> Rows:
        import torch

        config = self.config
        pixels = np.stack([_crop(image, config.resize, config.crop, config.interpolation) for image in images])
        normalised = (pixels / np.float32(255) - np.float32(config.mean)) / np.float32(config.std)
        inputs = torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy()).to(self._device)
        with exact():
            output = self._model(pixel_values=inputs, output_hidden_states=config.layer != -1)
            pooled = output.pooler_output if config.pooling == "pooler" else self._pooled(output)
            return np.asarray(torch.nn.functional.normalize(pooled.double(), dim=-1).cpu().numpy())

    def _pooled(self, output: Any) -> Any:
        tokens = output.last_hidden_state if self.config.layer == -1 else output.hidden_states[self.config.layer]
        if tokens.ndim != 3:
            raise ConfigError("not a vision transformer", value=tuple(tokens.shape), fix="name a DINO model")
        return tokens[:, 0] if self.config.pooling == "cls" else tokens.mean(dim=1)

    def _check(self) -> None:
        """Embed one image, so that a configuration that does not fit the model fails before images are generated."""
        config = self.config
        try:
            self._embed([np.zeros((config.crop, config.crop, 3), np.uint8)])
        except ConfigError:
            raise
        except (ValueError, IndexError, AttributeError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"metrics.dino_i does not fit the model ({first_line(error)})",
                value=f"crop={config.crop}, layer={config.layer}, pooling={config.pooling}",
                fix=f"set crop to the size of image that {type(self._model).__name__} takes, layer to one that it has",
            ) from error


def _load(name_or_path: str, device: str) -> tuple[Any, list[str]]:
    from transformers import AutoModel

    return load_weights("DINO model", name_or_path, AutoModel, device, optional=("pooler",))


def _crop(image: Pixels, resize: int, crop: int, interpolation: str) -> Pixels:
    """Resize to a short side of ``resize`` pixels and cut out the centre, as torchvision's transforms do."""
    height, width = image.shape[:2]
    short = min(height, width)
    size = int(resize * width / short), int(resize * height / short)
    resized = np.asarray(Image.fromarray(image).resize(size, _RESAMPLING[interpolation]))
    top, left = round((size[1] - crop) / 2), round((size[0] - crop) / 2)
    return resized[top : top + crop, left : left + crop]
