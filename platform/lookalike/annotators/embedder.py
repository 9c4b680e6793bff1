"""Image embedders by name, and any vision model of transformers (DINOv2, CLIP, SigLIP) by folder or Hub id.

Embeddings measure how similar two photos are: to find pairs, copies and other subjects, and for identity metrics.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from lookalike.annotators.base import Embedder
from lookalike.annotators.foreground import EfficientNetLite0, ForegroundColour
from lookalike.annotators.hub import load_model, model_revision

NO_EMBEDDER = "none"
_COLOUR_WEIGHT = 0.35  # of the similarity; .3 and .5 rank pairs about as well, without colour AUC falls .995 → .97


def load_embedder(name_or_path: str, device: str = "cpu") -> Embedder:
    """Load an embedder of :data:`EMBEDDERS` by name, or a vision model of transformers by folder or Hub id.

    ``id@revision`` pins a model on the Hub.

    Raises:
        ConfigError: neither a known name, nor a folder or Hub id of such a model.
    """
    named = EMBEDDERS.get(name_or_path)
    return named.load(device) if named else TransformersEmbedder(name_or_path, device)


def revision_of(name_or_path: str) -> str:
    """Return the revision of the embedder that :func:`load_embedder` would load; no weights are loaded."""
    named = EMBEDDERS.get(name_or_path)
    return named.revision if named else model_revision(name_or_path, "embedder")


class Joined:
    """Two embedders joined: the similarity is ``(1 - weight) · first + weight · second``."""

    def __init__(self, first: Embedder, second: Embedder, weight: float) -> None:
        self._first, self._second, self._weight = first, second, weight
        self.revision = _joined_revision(first.revision, second.revision, weight)
        self.dim = first.dim + second.dim

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        first, second = self._first(images), self._second(images)
        return np.concatenate([first * (1 - self._weight) ** 0.5, second * self._weight**0.5], axis=1)


class NoEmbedder:
    """The zero vector for every image, so that every similarity is 0: to curate by labels and hashes alone."""

    revision = NO_EMBEDDER
    dim = 1

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.zeros((len(images), self.dim), np.float32)


class TransformersEmbedder:
    """A vision model of transformers: image features where it has a joint space (CLIP, SigLIP), else its CLS token."""

    def __init__(self, name_or_path: str, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.revision = model_revision(name_or_path, "embedder")
        classes = AutoImageProcessor, AutoModel
        self._processor, self._model = load_model("embedder", name_or_path, *classes, device, tuple(EMBEDDERS))
        self._device = device
        self.dim = len(self([np.zeros((64, 64, 3), np.uint8)])[0])

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        photos = [Image.fromarray(image) for image in images]
        pixels = self._processor(images=photos, return_tensors="pt")["pixel_values"].to(self._device)
        with torch.inference_mode():
            if hasattr(self._model, "get_image_features"):
                output = self._model.get_image_features(pixel_values=pixels)
                vectors = output if isinstance(output, torch.Tensor) else output.pooler_output
            else:
                vectors = self._model(pixel_values=pixels).last_hidden_state[:, 0]
            return np.asarray(torch.nn.functional.normalize(vectors, dim=1).float().cpu().numpy())


class NamedEmbedder(NamedTuple):
    """An embedder that is known by name."""

    revision: str
    load: Callable[[str], Embedder]
    """Takes the device."""


def _joined_revision(first: str, second: str, weight: float) -> str:
    return f"{first}+{weight:g}*{second}"


EMBEDDERS = {
    "efficientnet-lite0": NamedEmbedder(EfficientNetLite0.revision, EfficientNetLite0),
    "efficientnet-lite0-colour": NamedEmbedder(
        _joined_revision(EfficientNetLite0.revision, ForegroundColour.revision, _COLOUR_WEIGHT),
        lambda device: Joined(EfficientNetLite0(device), ForegroundColour(), _COLOUR_WEIGHT),
    ),
    NO_EMBEDDER: NamedEmbedder(NO_EMBEDDER, lambda device: NoEmbedder()),
}
"""A new embedder is a class and one line here. ``efficientnet-lite0``: 1280-d, weighs what differs from the image's
border. ``efficientnet-lite0-colour``: the same joined with a colour histogram of the foreground; separates subjects
that differ in colour only; curation's default. ``none``: costs nothing, and no two images are similar."""
