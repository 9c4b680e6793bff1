"""A pipeline with perturbed weights, photographs, and a record of what its DiT was called with."""

from typing import Any

import pytest
from PIL import Image

from lookalike.diffusion.pipeline import SubjectPipeline


@pytest.fixture(scope="module")
def pipe(bundle_dir, perturb) -> SubjectPipeline:
    pipe = SubjectPipeline.from_pretrained(bundle_dir)
    pipe.set_progress_bar_config(disable=True)
    perturb(pipe.transformer)
    return pipe


@pytest.fixture
def photos(pictures) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures(4)]


@pytest.fixture
def flux_calls(pipe, monkeypatch) -> list[dict[str, Any]]:
    """Arguments of every call of the pipeline's DiT from now on."""
    calls: list[dict[str, Any]] = []
    forward = pipe.transformer.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", record)
    return calls
