"""The actor of many generations: one base, adapters of several customers in one batch."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.bundles.load import load_preprocessor
from lookalike.bundles.manifest import BundleReference
from lookalike.bundles.transfer import fetch_bundle
from lookalike.diffusion.inputs import check_size
from lookalike.diffusion.stacked import PersonalImage, StackedPipeline
from lookalike.errors import describe
from lookalike.models.components import token_shape
from lookalike.models.preprocess import Preprocessor
from lookalike.storage.claim import run_once
from pipelines.actors import ActorConfig, Columns, may_pass
from pipelines.generate.generation import RESULT, Generation, PlannedImage
from pipelines.generate.requests import DONE, FAILED, GENERATED, ResolvedRequest, result_row
from pipelines.generate.worker import settings_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ManyWork:
    """What all units share."""

    actors: ActorConfig
    batch_size: int
    adapters_mib: int


@dataclass(eq=False)
class _Task:
    """A request of a unit, and what became of it."""

    asked: ResolvedRequest
    state: str = DONE
    error: Exception | None = None
    generation: Generation | None = None
    """If images are to be generated or the result is to be written."""
    run: str = ""
    """The claim of its output."""

    @property
    def bundle(self) -> BundleReference:
        return self.asked.model.bundle


class StackedGenerator:
    """Generate the images of a unit's requests, whose passes can be shared; a request that fails fails alone."""

    def __init__(self, work: ManyWork) -> None:
        self._work = work
        self._device = work.actors.prepare()
        self._pipe: StackedPipeline | None = None
        self._preprocessor: tuple[str, Preprocessor, int] | None = None

    def __call__(self, unit: Sequence[ResolvedRequest]) -> Columns:
        """Return a row for each request, as JSON."""
        tasks = [_Task(asked) for asked in unit]
        for task in tasks:
            _alone(task, self._begin)
        rows = [(task, image) for task in tasks if task.generation is not None for image in task.generation.missing()]
        for first in range(0, len(rows), self._work.batch_size):
            self._generate(rows[first : first + self._work.batch_size])
        for task in tasks:
            _alone(task, _finish)
        return {"result": np.array([_row(task) for task in tasks], dtype=object)}

    def _begin(self, task: _Task) -> None:
        """Claim the output of a request, and read its inputs; without a ``generation`` it is done already."""
        config = task.asked.config
        generation = Generation.read(config, task.asked.model)
        preprocessor, multiple = self._preprocessor_of(task.bundle.whole)
        preset = preprocessor.preset
        check_size(config.height or preset.height, config.width or preset.width, multiple)

        def begin(run: str) -> None:
            generation.check_prompts(preprocessor)
            task.generation, task.run, task.state = generation, run, GENERATED

        def earlier(run: str) -> None:
            generation.earlier(run)

        run_once(generation.store, RESULT, config, content=generation.content, earlier=earlier, work=begin)

    def _generate(self, rows: Sequence[tuple[_Task, PlannedImage]]) -> None:
        """Generate and write the images of one batch; if that fails, those of each request apart."""
        rows = [(task, image) for task, image in rows if task.error is None]
        tasks = list(dict.fromkeys(task for task, _ in rows))
        if not tasks:
            return
        config = tasks[0].asked.config
        try:
            pipe = self._pipeline(tasks[0].bundle.whole)
            images = pipe([_personal(task, image) for task, image in rows], **settings_of(config))
        except Exception as error:
            if may_pass(error):
                raise
            if len(tasks) == 1:
                tasks[0].state, tasks[0].error = FAILED, error
                return
            log.warning("a batch of %d requests failed, and each is tried alone: %s", len(tasks), describe(error))
            for task in tasks:
                self._generate([row for row in rows if row[0] is task])
            return
        for (task, image), pixels in zip(rows, images, strict=True):
            assert task.generation is not None
            task.generation.write_image(image, pixels)

    def _pipeline(self, base: BundleReference) -> StackedPipeline:
        """The pipeline of a base; another one that was loaded is dropped first."""
        if self._pipe is None or self._pipe.base.sha256 != base.sha256:
            self._pipe = None
            self._pipe = StackedPipeline(base, self._device, self._work.adapters_mib << 20)
        return self._pipe

    def _preprocessor_of(self, base: BundleReference) -> tuple[Preprocessor, int]:
        """The preprocessor of a base, and the side of its tokens in pixels."""
        if self._preprocessor is None or self._preprocessor[0] != base.sha256:
            components, _ = fetch_bundle(base)
            self._preprocessor = base.sha256, load_preprocessor(components), token_shape(components)[0]
        return self._preprocessor[1:]


def _alone(task: _Task, do: Callable[[_Task], None]) -> None:
    """Call ``do(task)``; what only this request can have caused is recorded in it."""
    if task.error is not None:
        return
    try:
        do(task)
    except Exception as error:
        if may_pass(error):
            raise
        log.debug("request %s failed", task.asked.request.name, exc_info=True)
        task.state, task.error, task.generation = FAILED, error, None


def _finish(task: _Task) -> None:
    if task.generation is not None:
        task.generation.finish(task.run)


def _personal(task: _Task, image: PlannedImage) -> PersonalImage:
    assert task.generation is not None
    return PersonalImage(task.bundle, image.prompt, task.generation.photos, image.seed)


def _row(task: _Task) -> str:
    return json.dumps(result_row(task.asked.request, task.state, task.error), default=str)
