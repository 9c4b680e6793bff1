"""Captions of photos by an image-text-to-text model of transformers, by Hub id or folder."""

from collections.abc import Callable
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

    def load(self, device: str) -> Callable[[np.ndarray], str]:
        """Load the model. Raises ConfigError if it is not available.

        Returns:
            a function that describes an upright uint8 RGB image ``[H, W, 3]`` in one line. It decodes greedily, one
            image at a time, so equal images get equal captions.
        """
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor, model = load_model("captioner", self.model, AutoProcessor, AutoModelForImageTextToText, device)
        text: dict[str, list[str]] = {}
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
            turns = [{"role": "user", "content": content}]
            text = {"text": [processor.apply_chat_template(turns, add_generation_prompt=True)]}

        def caption(image: np.ndarray) -> str:
            inputs = processor(images=[Image.fromarray(image)], return_tensors="pt", **text).to(device)
            with torch.inference_mode():
                tokens = model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
            asked = inputs["input_ids"] if "input_ids" in inputs else tokens[:, :0]
            if torch.equal(tokens[:, : asked.shape[1]], asked):  # a decoder-only model returns its prompt too
                tokens = tokens[:, asked.shape[1] :]
            return " ".join(processor.batch_decode(tokens, skip_special_tokens=True)[0].split())

        return caption
