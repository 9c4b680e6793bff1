"""Captions of photos by an image-text-to-text model of transformers, by Hub id or folder."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Le
from PIL import Image

from lookalike.annotators.base import Caption
from lookalike.annotators.hub import fixed_shape, load_model, model_revision
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

    def load(self, device: str) -> Caption:
        """Load the model. Raises ConfigError if it is not available.

        Returns:
            a function that describes each image in one line. It decodes greedily, so equal images get equal captions.
            On a GPU a model whose input has one shape (BLIP, LLaVA, PaliGemma) gets the whole batch. One whose input
            depends on the image's size (Qwen-VL, InternVL) gets one image at a time: padding would make a caption
            depend on the images beside it.
        """
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor, model = load_model("captioner", self.model, AutoProcessor, AutoModelForImageTextToText, device)
        prompt: list[str] = []
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
            turns = [{"role": "user", "content": content}]
            prompt = [processor.apply_chat_template(turns, add_generation_prompt=True)]
        together = device != "cpu" and fixed_shape(processor, **_texts(prompt))

        def caption(images: Sequence[np.ndarray]) -> list[str]:
            captions: list[str] = []
            for group in [images] if together else [[image] for image in images]:
                photos = [Image.fromarray(image) for image in group]
                inputs = processor(images=photos, return_tensors="pt", **_texts(prompt * len(group))).to(device)
                with torch.inference_mode():
                    tokens = model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
                asked = inputs["input_ids"] if "input_ids" in inputs else tokens[:, :0]
                if torch.equal(tokens[:, : asked.shape[1]], asked):  # a decoder-only model returns its prompt too
                    tokens = tokens[:, asked.shape[1] :]
                captions += [
                    " ".join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)
                ]
            return captions

        return caption


def _texts(prompts: list[str]) -> dict[str, list[str]]:
    """The processor's argument for the prompts; a model without a chat template has none."""
    return {"text": prompts} if prompts else {}
