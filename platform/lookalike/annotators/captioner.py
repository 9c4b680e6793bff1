"""Captions of photos by an image-text-to-text model of transformers, by Hub id or folder."""

from typing import Annotated

import numpy as np
from annotated_types import Le
from PIL import Image

from lookalike.annotators.hub import load_model, model_revision
from lookalike.values import Count, configuration


@configuration("captioner")
class Captioner:
    """Settings of a captioner: the model and its prompt."""

    model: str
    """Folder or Hub id, such as ``Salesforce/blip-image-captioning-base``; ``id@revision`` pins it."""
    prompt: str = "Describe this photo in one sentence."
    """Instruction for a model with a chat template; others get the image alone."""
    max_tokens: Annotated[Count, Le(4_096)] = 64
    """Maximum length of a caption, tokens."""

    @property
    def revision(self) -> str:
        """Equal revisions give equal captions."""
        return f"{model_revision(self.model, 'captioner')}/{self.max_tokens}/{self.prompt}"

    def load(self, device: str) -> "LoadedCaptioner":
        """Load the model. Raises ConfigError if it is not available."""
        return LoadedCaptioner(self, device)


class LoadedCaptioner:
    """A loaded captioner. It decodes greedily, one image at a time, so equal images get equal captions."""

    def __init__(self, captioner: Captioner, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        classes = AutoProcessor, AutoModelForImageTextToText
        self._processor, self._model = load_model("captioner", captioner.model, *classes, device)
        self._device, self._captioner = device, captioner
        self._question = None
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": captioner.prompt}]
            turns = [{"role": "user", "content": content}]
            self._question = self._processor.apply_chat_template(turns, add_generation_prompt=True)

    def __call__(self, image: np.ndarray) -> str:
        """Describe an upright uint8 RGB image ``[H, W, 3]`` in one line."""
        import torch

        text = {} if self._question is None else {"text": [self._question]}
        inputs = self._processor(images=[Image.fromarray(image)], return_tensors="pt", **text).to(self._device)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=self._captioner.max_tokens, do_sample=False)
        asked = inputs["input_ids"] if "input_ids" in inputs else tokens[:, :0]
        if torch.equal(tokens[:, : asked.shape[1]], asked):  # a decoder-only model returns its prompt too
            tokens = tokens[:, asked.shape[1] :]
        return " ".join(self._processor.batch_decode(tokens, skip_special_tokens=True)[0].split())
