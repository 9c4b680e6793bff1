"""A CLIP model for CLIP-I and CLIP-T, from a Hub id or a local folder in transformers' format."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lookalike.errors import InputError
from lookalike.models.components import NO_CODE
from lookalike.models.tokenizer import readable

_MOST_CHARACTERS = 20_000  # of a text that is cut to 77 tokens
FloatsBD = np.ndarray  # float32 [B, D], rows of unit norm


class ClipScorer:
    """The image and the text encoder of a CLIP model.

    Args:
        name_or_path: Hub id (DreamBench uses ``openai/clip-vit-base-patch32``) or a folder in transformers' format.
        device: of the model.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, name_or_path: str, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        try:
            self._model = CLIPModel.from_pretrained(name_or_path, use_safetensors=True).eval().to(device)
            self._tokenizer = AutoTokenizer.from_pretrained(name_or_path, **NO_CODE)
            self._processor = CLIPImageProcessor.from_pretrained(name_or_path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load a CLIP model: {error}",
                value=name_or_path,
                fix="name a Hub id or a folder with a CLIPModel",
            ) from error
        self._device = device

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> FloatsBD:
        """Embed uint8 RGB images ``[H, W, 3]``."""
        inputs = self._processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        found = self._model.get_image_features(pixel_values=inputs["pixel_values"].to(self._device))
        return _unit(found.pooler_output)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> FloatsBD:
        """Embed texts; what exceeds the model's context is cut, and names of control tokens are read as text."""
        inputs = self._tokenizer(
            [readable(text[:_MOST_CHARACTERS]) for text in texts],
            padding=True,
            truncation=True,
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self._device)
        found = self._model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return _unit(found.pooler_output)


def _unit(features: Tensor) -> FloatsBD:
    return np.asarray(nn.functional.normalize(features.float(), dim=-1).cpu().numpy())
