"""The actor of a generation, which holds one model and generates one batch of images at a time."""

from dataclasses import dataclass

import numpy as np

from lookalike.bundles.manifest import BundleReference
from lookalike.data.images import decode, encode_png
from lookalike.diffusion.loading import load_pipeline
from lookalike.diffusion.schedule import PRESET
from lookalike.storage import open_store
from pipelines.actors import Columns
from pipelines.generate.config import GenerateConfig


@dataclass(frozen=True)
class Request:
    """One image to generate."""

    file: str
    """Its key below the output."""
    prompt: str
    """The prompt."""
    seed: int
    """Seed of the initial noise."""


@dataclass(frozen=True)
class GenerationWork:
    """The batches of a generation, and what they share."""

    config: GenerateConfig
    bundle: BundleReference
    model: str
    """Name and version, as written into each image."""
    references: tuple[bytes, ...]
    """Encoded photos of the subject, shared by all requests."""
    units: tuple[tuple[Request, ...], ...]
    """Batches."""


class Generator:
    """Generate and write the images of a unit, each with its provenance in its PNG text chunks."""

    def __init__(self, work: GenerationWork) -> None:
        self._work = work
        self._pipe = load_pipeline(work.bundle, work.config.actors.prepare())
        self._references = [decode(data) for data in work.references]

    def __call__(self, unit: int) -> Columns:
        work, config, requests = self._work, self._work.config, self._work.units[unit]
        images = self._pipe(
            [request.prompt for request in requests],
            self._references,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            stages=config.stages,
            height=config.height,
            width=config.width,
            seeds=[request.seed for request in requests],
        ).images
        store = open_store(config.out)
        for request, image in zip(requests, images, strict=True):
            store.write(
                request.file,
                encode_png(
                    np.asarray(image),
                    {
                        "prompt": request.prompt,
                        "seed": str(request.seed),
                        "model": work.model,
                        "bundle_sha256": work.bundle.sha256,
                        "stages": work.bundle.stages if config.stages == PRESET else config.stages,
                        "Software": "lookalike",
                    },
                ),
            )
        return {"file": np.array([request.file for request in requests])}
