"""``clip_i``, ``clip_t``: CLIP-I and CLIP-T of DreamBench, cosines of an image with its references and its prompt.

Range: -1 to 1, higher is better. The model is the user's (``openai/clip-vit-base-patch32`` in the DreamBooth paper).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lookalike.errors import InputError
from lookalike.evaluation.metrics.base import Pixels, Settings, Task, at_size_of, similarity

_MOST_CHARACTERS = 20_000  # of a text that is cut to 77 tokens
FloatsBD = np.ndarray  # float32 [B, D], rows of unit norm


class Clip:
    """Mean cosine similarity to the references, and cosine similarity to the prompt, under a CLIP model.

    ``name_or_path`` is a Hub id or a folder in transformers' format. Raises InputError if it cannot be loaded.
    """

    labels: ClassVar[Mapping[str, str]] = {"clip_i": "CLIP-I", "clip_t": "CLIP-T"}
    likeness: ClassVar[Sequence[str]] = ("clip_i",)

    def __init__(self, name_or_path: str, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        from lookalike.models.components import NO_CODE

        try:
            self._model = CLIPModel.from_pretrained(name_or_path, use_safetensors=True).eval().to(device)
            self._model.requires_grad_(False)
            self._tokenizer = AutoTokenizer.from_pretrained(name_or_path, **NO_CODE)
            self._processor = CLIPImageProcessor.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load a CLIP model: {error}",
                value=name_or_path,
                fix="name a Hub id or a folder with a CLIPModel",
            ) from error
        self._device = device

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Clip | None":
        return cls(settings.clip, device) if settings.clip else None

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        return [
            {
                "clip_i": similarity(self._embed_images, image, at_size_of(image, task.references)),
                "clip_t": float((self._embed_images([image]) @ self._embed_text(task.prompt).T).item()),
            }
            for image, task in zip(images, tasks, strict=True)
        ]

    def _embed_images(self, images: Sequence[Pixels]) -> FloatsBD:
        inputs = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        return _unit(self._model.get_image_features(pixel_values=inputs["pixel_values"].to(self._device)))

    def _embed_text(self, text: str) -> FloatsBD:
        """Embed a text; what exceeds the model's context is cut, and names of control tokens are read as text."""
        from lookalike.models.tokenizer import readable

        text = readable(text[:_MOST_CHARACTERS])
        inputs = self._tokenizer(text, truncation=True, split_special_tokens=True, return_tensors="pt")
        inputs = inputs.to(self._device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return _unit(self._model.get_text_features(input_ids=ids, attention_mask=mask))


def _unit(features: Any) -> FloatsBD:
    from torch.nn import functional

    return np.asarray(functional.normalize(features.pooler_output.float(), dim=-1).cpu().numpy())
