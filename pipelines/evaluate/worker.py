"""The actor of an evaluation, which holds one model and measures units of work."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from lookalike.bundles.manifest import BundleReference
from lookalike.data.images import encode_png
from lookalike.data.triplets import ShardError, Triplet, load_images
from lookalike.diffusion.flow import FlowConfig, seed_of
from lookalike.diffusion.loading import load_pipeline
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.errors import UnreachableError, describe
from lookalike.evaluation.measure import paired_losses
from lookalike.evaluation.measurements import UNREADABLE, Measurement, with_prefix
from lookalike.evaluation.metrics import Metric, Task, measure, metrics_of
from lookalike.evaluation.suites import Case
from lookalike.models.batch import Batch, to_batch
from lookalike.models.preprocess import Preprocessor, check_image
from lookalike.models.subject import SubjectModel
from lookalike.models.vae import LatentCache
from lookalike.storage import open_store
from pipelines.actors import Columns
from pipelines.evaluate.config import EvaluateConfig

log = logging.getLogger(__name__)

Images = tuple[np.ndarray, list[np.ndarray]]


@dataclass(frozen=True)
class Unit:
    """Losses that are measured, or images that are generated, in one batch."""

    bundle: int
    """Index of the bundle."""
    cases: tuple[Case, ...]
    stages: str | None = None
    """The denoising schedule of images; None for losses."""


@dataclass(frozen=True)
class EvaluationWork:
    """Everything that an evaluation measures."""

    config: EvaluateConfig
    bundles: tuple[BundleReference, ...]
    """The bundle, and the one it is compared with, if any."""
    pool: Mapping[int, Triplet]
    """The triplets of the suite's pool that units name, by their index."""
    snapshots: Mapping[int, str]
    """For each of them the URI of the snapshot's version."""
    units: tuple[Unit, ...]


class Evaluator:
    """Measure units of work; the result of each is rows of case, subject, metric, value."""

    def __init__(self, work: EvaluationWork) -> None:
        self._work = work
        self._device = work.config.actors.prepare()
        self._loaded: tuple[int, SubjectPipeline] | None = None
        self._cache = LatentCache()
        self._read: dict[int, Images] = {}

    def __call__(self, unit: int) -> Columns:
        work = self._work.units[unit]
        self._read.clear()
        rows = self._losses(work) if work.stages is None else self._images(work, work.stages)
        return {field.name: np.array([getattr(row, field.name) for row in rows]) for field in fields(Measurement)}

    def _losses(self, unit: Unit) -> list[Measurement]:
        pipe, pool = self._pipe(unit.bundle), self._work.pool
        cases, unreadable = self._readable(unit.cases)
        if not cases:
            return unreadable
        references = self._preprocessor(pipe).preset.references
        model = SubjectModel(pipe.mllm, pipe.aggregator, pipe.transformer, references).eval()
        targets = [self._load(case.target)[0] for case in cases]
        others = [case.other for case in cases if case.other is not None]
        rows = paired_losses(
            model,
            pipe.vae,
            FlowConfig.from_scheduler(pipe.scheduler.config),
            self._batch(pipe, [case.conditions for case in cases], targets),
            self._batch(pipe, others, targets) if len(others) == len(targets) else None,
            sample_ids=[case.case_id for case in cases],
            subjects=[pool[case.target].subject for case in cases],
            seed=self._work.config.seed,
            cache=self._cache,
        )
        return with_prefix(rows, _before(unit.bundle)) + unreadable

    def _images(self, unit: Unit, stages: str) -> list[Measurement]:
        config, pool = self._work.config, self._work.pool
        pipe = self._pipe(unit.bundle)
        cases, unreadable = self._readable(unit.cases)
        if not cases:
            return unreadable
        given = [pool[case.conditions] for case in cases]
        images = pipe(
            [triplet.prompt for triplet in given],
            [self._load(case.conditions)[1] for case in cases],
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            stages=stages,
            seeds=[seed_of(config.seed, case.case_id) % 2**63 for case in cases],
        ).images
        images = np.stack([np.asarray(image) for image in images])
        store = open_store(config.out)
        for case, image in zip(cases, images, strict=True):
            store.write(image_key(unit.bundle, case, stages), encode_png(image))
        tasks = [
            Task(
                case.case_id,
                pool[case.target].subject,
                pool[case.target].prompt,
                references=self._load(case.target)[1],
                others=[] if case.other is None else self._load(case.other)[1],
                class_name=pool[case.target].class_name,
            )
            for case in cases
        ]
        main = "" if stages == config.stages[0] else f"{stages}/"
        return with_prefix(measure(self._metrics, list(images), tasks), _before(unit.bundle) + main) + unreadable

    def _readable(self, cases: Sequence[Case]) -> tuple[list[Case], list[Measurement]]:
        """Select the cases whose triplets can be read; for each other case a row with the reason as its metric."""
        usable, unreadable = [], []
        for case in cases:
            needed = [case.target, case.conditions, *([] if case.other is None else [case.other])]
            triplet = case.target
            try:
                for triplet in needed:
                    self._load(triplet)
                usable.append(case)
            except (UnreachableError, ShardError, MemoryError):
                raise
            except Exception as error:  # whatever a decoder raises for the bytes of this one
                reason = f"triplet {self._work.pool[triplet].triplet_id}: {describe(error)[:200]}"
                log.warning("case %s is not measured: %s", case.case_id, reason)
                subject = self._work.pool[case.target].subject
                unreadable.append(Measurement(case.case_id, subject, UNREADABLE + reason, 1.0))
        return usable, unreadable

    def _pipe(self, bundle: int) -> SubjectPipeline:
        if self._loaded is None or self._loaded[0] != bundle:
            self._loaded = None  # one model at a time
            self._cache = LatentCache()
            self._loaded = (bundle, load_pipeline(self._work.bundles[bundle], self._device))
        return self._loaded[1]

    @cached_property
    def _metrics(self) -> list[Metric]:
        return metrics_of(self._work.config, self._device)

    def _batch(self, pipe: SubjectPipeline, conditions: Sequence[int], targets: list[np.ndarray]) -> Batch:
        prompts = [self._work.pool[index].prompt for index in conditions]
        references = [self._load(index)[1] for index in conditions]
        rows = self._preprocessor(pipe)(prompts, references, targets, truncate_prompts=True)
        return to_batch(rows).to(self._device)

    @staticmethod
    def _preprocessor(pipe: SubjectPipeline) -> Preprocessor:
        assert pipe.preprocessor is not None, "a pipeline from a bundle has one"
        return pipe.preprocessor

    def _load(self, index: int) -> Images:
        """Target and references of a triplet, read once for each unit."""
        if index not in self._read:
            target, references = load_images(open_store(self._work.snapshots[index]), self._work.pool[index])
            check_image(target, "target")
            for image in references:
                check_image(image)
            self._read[index] = target, references
        return self._read[index]


def image_key(bundle: int, case: Case, stages: str) -> str:
    """Key of a generated image below the evaluation's prefix."""
    return f"images/{_before(bundle)}{stages.replace('/', '-')}/{case.case_id}.png"


def _before(bundle: int) -> str:
    return "before/" if bundle else ""
