"""``clip_i``, ``clip_t``: CLIP-I and CLIP-T of DreamBench, cosines of an image with real photos and with its prompt.

``clip_t_place``, ``clip_t_recolouring``, ``clip_t_accessory``, ``clip_t_style``: CLIP-T over the prompts of one kind.

Formula: CLIP-I see ``likeness.py``; CLIP-T is the cosine of the embeddings of the image and of the prompt. Range: -1 to
1, higher is better; values of real images with their captions are around 0.3 (DreamBench++ prints them times 100).
Source: Ruiz et al. 2023 (DreamBooth), section 4.2, after Radford et al. 2021; both DreamBooth's followers and
DreamBench++ (Peng et al. 2024, ``dreambench_plus/metrics/clip_score.py``) use ``openai/clip-vit-base-patch32`` with the
image processor of the checkpoint (bicubic to 224 pixels on the short side, centre crop, CLIP's mean and standard
deviation). The model is the user's. The processor is transformers' PIL one, whatever else is installed.

It cannot see: CLIP-I hardly tells two subjects of one class apart (DreamBooth, section 4.2, prefers DINO for that), and
rises by copying; CLIP-T does not see the subject at all, nor order and counts in the prompt, and what exceeds 77 tokens
is cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from lookalike.annotators.hub import fixed_shape, load_model, model_revision, split_pin
from lookalike.evaluation.metrics.base import PROMPT_KINDS, Pixels, Settings, Task, exact, settings_of
from lookalike.evaluation.metrics.likeness import Embeddings, Likeness, LikenessConfig, Rows
from lookalike.process_wide import alone_in_process
from lookalike.values import configuration

_MOST_CHARACTERS = 20_000  # of a text that is cut to 77 tokens


@configuration()
class ClipTextConfig:
    """How CLIP-T is computed."""

    prompt: Literal["prompt", "plain"] = "prompt"
    """``prompt``: the prompt that the model was asked to follow; ``plain``: the one with the class word alone, where
    the suite's template has another name of the subject in its place."""


class Clip:
    """Similarity to real photos of the subject, and to the prompt, under a CLIP model.

    ``name_or_path`` is a Hub id (``id@revision``) or a folder in transformers' format. Raises ConfigError if it cannot
    be loaded.
    """

    labels: ClassVar[Mapping[str, str]] = {
        "clip_i": "CLIP-I",
        "clip_t": "CLIP-T",
        **{f"clip_t_{kind}": f"CLIP-T, {kind}" for kind in PROMPT_KINDS},
    }
    likeness: ClassVar[Sequence[str]] = ("clip_i",)
    configurations: ClassVar[Mapping[str, type]] = {"clip_i": LikenessConfig, "clip_t": ClipTextConfig}
    flag: ClassVar[str] = "clip"

    def __init__(
        self,
        name_or_path: str,
        config: LikenessConfig | None = None,
        text: ClipTextConfig | None = None,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoImageProcessor, CLIPModel

        self.config, self.text = config or LikenessConfig(), text or ClipTextConfig()
        self.revision = model_revision(name_or_path, "CLIP model")
        self._processor, self._model = load_model("CLIP model", name_or_path, AutoImageProcessor, CLIPModel, device)
        self._tokenizer = _load_tokenizer(name_or_path)
        self._device = device
        batch = {} if fixed_shape(self._processor) else {"batch": 1}
        self._embed = Embeddings(self._embed_images, device, **batch)
        self._likeness = Likeness(self._embed, self.config)

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Clip | None":
        image = settings_of(settings, "clip_i", LikenessConfig, flag=cls.flag)
        text = settings_of(settings, "clip_t", ClipTextConfig, flag=cls.flag)
        return cls(settings.clip, image, text, device) if settings.clip else None

    def protocol(self) -> dict[str, Any]:
        """Every choice behind the values: the model's revision, its image processor, and the resolved settings."""
        names = ("size", "crop_size", "resample", "do_center_crop", "rescale_factor", "image_mean", "image_std")
        processor = self._processor.to_dict()
        return {
            "model": self.revision,
            "class": type(self._model).__name__,
            "image_processor": {name: processor[name] for name in names if name in processor},
            "text_tokens": int(self._model.config.text_config.max_position_embeddings),
            "clip_i": asdict(self.config),
            "clip_t": asdict(self.text),
        }

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> list[dict[str, float]]:
        rows = []
        prompts = [self._prompt_of(task) for task in tasks]
        texts = {prompt: self._embed_text(prompt) for prompt in dict.fromkeys(prompts)}
        vectors = self._embed(images)
        for vector, likeness, task, prompt in zip(vectors, self._likeness(images, tasks), tasks, prompts, strict=True):
            values = {} if likeness is None else {"clip_i": likeness}
            values["clip_t"] = float(texts[prompt] @ vector)
            if task.prompt_kind:
                values[f"clip_t_{task.prompt_kind}"] = values["clip_t"]
            rows.append(values)
        return rows

    def _prompt_of(self, task: Task) -> str:
        return task.plain_prompt or task.prompt if self.text.prompt == "plain" else task.prompt

    def _embed_images(self, images: Sequence[Pixels]) -> Rows:
        photos = [Image.fromarray(image) for image in images]
        pixels = self._processor(images=photos, return_tensors="pt")["pixel_values"].to(self._device)
        with exact():
            return _unit(self._model.get_image_features(pixel_values=pixels))

    def _embed_text(self, text: str) -> Rows:
        """Embed a text [D]; what exceeds the model's context is cut, and names of control tokens are read as text."""
        from lookalike.models.tokenizer import readable

        text = readable(text[:_MOST_CHARACTERS])
        most = int(self._model.config.text_config.max_position_embeddings)
        inputs = self._tokenizer(
            text, truncation=True, max_length=most, split_special_tokens=True, return_tensors="pt"
        ).to(self._device)
        with exact():
            features = self._model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
        return np.asarray(_unit(features)[0])


@alone_in_process()
def _load_tokenizer(name_or_path: str) -> Any:
    from transformers import AutoTokenizer

    from lookalike.annotators.hub import no_such_model
    from lookalike.models.components import NO_CODE

    name, pinned = split_pin(name_or_path)
    try:
        return AutoTokenizer.from_pretrained(name, revision=pinned, **NO_CODE)
    except (OSError, ValueError) as error:
        raise no_such_model("tokenizer of the CLIP model", name_or_path, error) from error


def _unit(features: Any) -> Rows:
    from torch.nn import functional

    return np.asarray(functional.normalize(features.pooler_output.double(), dim=-1).cpu().numpy())
