"""The actor of a generation, which holds one model and generates one batch of images at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike.data.images import decode
from lookalike.diffusion.loading import load_pipeline
from pipelines.actors import Columns
from pipelines.generate.config import GenerateConfig
from pipelines.generate.generation import Model, PlannedImage, write_image


@dataclass(frozen=True)
class GenerationWork:
    """The batches of a generation, and what they share."""

    config: GenerateConfig
    model: Model
    references: tuple[bytes, ...]
    """Encoded photos of the subject, shared by all images."""
    units: tuple[tuple[PlannedImage, ...], ...]
    """Batches."""


class Generator:
    """Generate and write the images of a unit, each with its provenance in its PNG text chunks."""

    def __init__(self, work: GenerationWork) -> None:
        self._work = work
        self._pipe = load_pipeline(work.model.bundle, work.config.actors.prepare())
        self._references = [decode(data) for data in work.references]

    def __call__(self, unit: int) -> Columns:
        work, config, planned = self._work, self._work.config, self._work.units[unit]
        images = self._pipe(
            [image.prompt for image in planned],
            self._references,
            seeds=[image.seed for image in planned],
            **settings_of(config),
        ).images
        for image, pixels in zip(planned, images, strict=True):
            write_image(config, work.model, image, pixels)
        return {"file": np.array([image.file for image in planned])}


def settings_of(config: GenerateConfig) -> dict[str, Any]:
    """The arguments of the pipeline's call that all images of a batch share."""
    return {
        "num_inference_steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "stages": config.stages,
        "height": config.height,
        "width": config.width,
    }
