"""Run one generation, from its configuration to its images."""

from typing import Any

from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.transfer import fetch_bundle
from lookalike.models.components import token_shape
from lookalike.storage.claim import run_once
from lookalike.storage.erasing import Watch
from pipelines.actors import run_units
from pipelines.generate.config import GenerateConfig
from pipelines.generate.generation import RESULT, Generation, find_model


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Generate the images; returns the content of ``generations.json``.

    Raises:
        InputError: the model is not registered, its bundle is missing, or a reference cannot be used.
        ConfigError: more references than the model reads.
        ConflictError: ``config.out`` holds another generation.
    """
    from lookalike.diffusion.inputs import check_size
    from pipelines.generate.worker import GenerationWork, Generator

    model = find_model(config.model, config.tracking, config.bundle, config.base)
    generation = Generation.read(config, model)
    components, _ = fetch_bundle(model.bundle)
    preprocessor = load_preprocessor(components)
    preset = preprocessor.preset
    check_size(config.height or preset.height, config.width or preset.width, token_shape(components)[0])

    def work(fingerprint: str) -> dict[str, Any]:
        generation.check_prompts(preprocessor)  # before any image
        missing = generation.missing()
        firsts = range(0, len(missing), config.batch_size)
        units = tuple(tuple(missing[first : first + config.batch_size]) for first in firsts)
        if units:
            plan = GenerationWork(config, model, tuple(data for _, data in generation.references), units)
            watch = Watch(generation.store)
            for _ in run_units(Generator, plan, len(units), config.actors):
                watch.check()
        return generation.finish(fingerprint)

    return run_once(generation.store, RESULT, config, content=generation.content, earlier=generation.earlier, work=work)
