"""The actor of an evaluation, which holds one model and measures units of work."""

import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import numpy as np

from lookalike.data.triplet_files import ShardError
from lookalike.diffusion.flow import FlowConfig, seed_of
from lookalike.diffusion.loading import load_pipeline
from lookalike.diffusion.pipeline import SubjectPipeline
from lookalike.errors import InputError, UnreachableError, describe
from lookalike.evaluation import metrics
from lookalike.evaluation.measure import paired_losses
from lookalike.evaluation.measurements import UNREADABLE, Measurement, with_prefix
from lookalike.evaluation.suites import Case, Photo, Sample
from lookalike.models.batch import Batch, to_batch
from lookalike.models.preprocess import Preprocessor
from lookalike.models.subject import SubjectModel
from lookalike.models.vae import LatentCache
from lookalike.pixels import crop_resize
from lookalike.storage import open_store
from pipelines.actors import Columns
from pipelines.evaluate.kept import read_image, write_image, write_rows
from pipelines.evaluate.photos import Photos
from pipelines.evaluate.units import PHOTO, EvaluationWork, Unit, before, image_key

log = logging.getLogger(__name__)


class Evaluator:
    """Measure units of work, and keep the rows of each in the store: case, subject, metric, value."""

    def __init__(self, work: EvaluationWork) -> None:
        self._work = work
        self._device = work.config.actors.prepare()
        self._store = open_store(work.config.out)
        self._photos = Photos()
        self._damaged: dict[str, Measurement] = {}  # the row of each photo that cannot be read, by its hash
        self._loaded: tuple[int, SubjectPipeline] | None = None
        self._cache = LatentCache()

    def __call__(self, number: int) -> Columns:
        unit = self._work.units[number]
        measure = {"losses": self._losses, "images": self._images, "stand_ins": self._stand_ins, "set": self._set}
        rows = measure[unit.kind](unit)
        write_rows(self._store, self._work.run, number, self._work.identity_of(number), rows)
        return {"rows": np.array([len(rows)])}

    def _losses(self, unit: Unit) -> list[Measurement]:
        pipe, pool = self._pipe(unit.bundle), self._work.pool
        cases, unreadable = self._readable(unit.cases)
        if not cases:
            return unreadable
        references = self._preprocessor(pipe).preset.references
        model = SubjectModel(pipe.mllm, pipe.aggregator, pipe.transformer, references).eval()
        targets = [self._target(case.target) for case in cases]
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
        return with_prefix(rows, before(unit.bundle)) + unreadable

    def _images(self, unit: Unit) -> list[Measurement]:
        cases, rows = self._readable(unit.cases)
        images = self._generated(unit, cases) if cases else []
        paired = zip(cases, images, strict=True)
        for _, group in groupby(paired, key=lambda pair: self._work.pool[pair[0].target].subject):
            own = list(group)
            index = own[0][0].target
            photos, damaged = self._usable(self._work.photos[index], self._work.pool[index])
            tasks = [self._task(case, photos) for case, _ in own]
            values = metrics.measure(self._metrics, [image for _, image in own], tasks)
            rows += [*with_prefix(values, self._prefix(unit)), *damaged]
        return _once(rows)

    def _generated(self, unit: Unit, cases: Sequence[Case]) -> list[np.ndarray]:
        """The images of ``cases``: those that this run has made, or a batch of new ones if any is missing.

        The batch is generated as a whole, since float sums depend on it.
        """
        config, pool, run = self._work.config, self._work.pool, self._work.run
        keys = [image_key(unit.bundle, case, unit.stages) for case in cases]
        made = [image for key in keys if (image := read_image(self._store, run, key)) is not None]
        if len(made) == len(keys):
            return made
        images = self._pipe(unit.bundle)(
            [pool[case.conditions].prompt for case in cases],
            [self._references(case.conditions) for case in cases],
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            stages=unit.stages,
            seeds=[seed_of(config.seed, case.case_id) % 2**63 for case in cases],
        ).images
        made = [np.asarray(image) for image in images]
        for key, image in zip(keys, made, strict=True):
            write_image(self._store, run, key, image)
        return made

    def _set(self, unit: Unit) -> list[Measurement]:
        """Measure the images of one subject together; those of cases that could not be read do not exist."""
        if not self._set_metrics:
            return []
        index = unit.cases[0].target
        subject = self._work.pool[index].subject
        images, tasks = [], []
        photos, _ = self._usable(self._work.photos[index], self._work.pool[index])
        for case in self._readable(unit.cases)[0]:
            image = read_image(self._store, self._work.run, image_key(unit.bundle, case, unit.stages))
            if image is None:
                what = f"the image of case {case.case_id} is missing or was changed"
                raise InputError(what, value=self._store.uri, fix="remove units/ there, and run the same command again")
            images.append(image)
            tasks.append(self._task(case, photos))
        if not images:
            return []
        values = [pair for metric in self._set_metrics for pair in metric(images, tasks).items()]
        rows = [Measurement(subject, subject, name, float(value)) for name, value in values]
        return with_prefix(rows, self._prefix(unit))

    def _stand_ins(self, unit: Unit) -> list[Measurement]:
        rows: list[Measurement] = []
        measured = [metric for metric in self._metrics if metric.likeness]
        names = {name for metric in measured for name in metric.likeness}
        preset = self._work.bundles[0].preset
        assert preset is not None, "locate_bundle reads it"
        for each in unit.stand_ins:
            sample = self._work.pool[each.sample]
            photo, damaged = self._usable([each.photo], sample)
            references, unusable = self._usable(each.references, sample)
            photos, others = self._usable(each.photos, sample)
            rows += damaged + unusable + others
            if not photo or not (references or photos):
                continue
            hashes = {target.sha256 for target in self._work.targets[each.sample]}
            targets, _ = self._usable([other for other in each.photos if other.sha256 in hashes], sample)
            task = self._task_of(each.case_id, sample, references or photos, [], photos, targets)
            image = crop_resize(photo[0], preset.height, preset.width)  # size is not what differs
            values = metrics.measure(measured, [image], [task])
            rows += with_prefix([row for row in values if row.metric in names], f"{each.kind}/")
        return _once(rows)

    def _task(self, case: Case, photos: Sequence[np.ndarray]) -> metrics.Task:
        others = [] if case.other is None else self._references(case.other)
        sample, references = self._work.pool[case.target], self._references(case.target)
        targets, _ = self._usable(self._work.targets[case.target], sample)
        return self._task_of(case.case_id, sample, references, others, photos, targets)

    @staticmethod
    def _task_of(
        case: str,
        sample: Sample,
        references: Sequence[np.ndarray],
        others: Sequence[np.ndarray],
        photos: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
    ) -> metrics.Task:
        return metrics.Task(
            case,
            sample.subject,
            sample.prompt,
            references=references,
            others=others,
            photos=photos,
            targets=targets,
            class_name=sample.class_name,
            plain_prompt=sample.plain_prompt,
            prompt_kind=sample.prompt_kind,
        )

    def _usable(self, photos: Sequence[Photo], sample: Sample) -> tuple[list[np.ndarray], list[Measurement]]:
        """The photos of a subject that can be read, and a row with the reason for each other one."""
        pixels, damaged = [], []
        for photo in photos:
            if photo.sha256 not in self._damaged:
                try:
                    pixels += self._photos.load([photo])
                    continue
                except (UnreachableError, ShardError, MemoryError):
                    raise
                except Exception as error:  # whatever a decoder raises for the bytes of this one
                    self._damaged[photo.sha256] = _unreadable(f"{PHOTO}{photo.sha256[:16]}", sample, describe(error))
            damaged.append(self._damaged[photo.sha256])
        return pixels, damaged

    def _readable(self, cases: Sequence[Case]) -> tuple[list[Case], list[Measurement]]:
        """Select the cases whose samples can be read; for each other case a row with the reason as its metric."""
        usable, unreadable = [], []
        for case in cases:
            index = case.target
            try:
                for index in (case.target, case.conditions, *([] if case.other is None else [case.other])):
                    self._load(index)
                usable.append(case)
            except (UnreachableError, ShardError, MemoryError):
                raise
            except Exception as error:  # whatever a decoder raises for the bytes of this one
                sample = self._work.pool[index]
                noun = "prompt" if sample.target is None and not sample.damage else "triplet"
                reason = f"{noun} {sample.sample_id}: {describe(error)[:200]}"
                unreadable.append(_unreadable(case.case_id, self._work.pool[case.target], reason))
        return usable, unreadable

    def _load(self, index: int) -> list[np.ndarray]:
        """Target, if the sample has one, and references."""
        sample: Sample = self._work.pool[index]
        if sample.damage:
            raise InputError(sample.damage, value=sample.sample_id, fix="curate the photos again")
        photos: list[Photo] = [*filter(None, [sample.target]), *sample.references]
        return self._photos.load(photos)

    def _target(self, index: int) -> np.ndarray:
        return self._load(index)[0]

    def _references(self, index: int) -> list[np.ndarray]:
        return self._photos.load(self._work.pool[index].references)

    def _prefix(self, unit: Unit) -> str:
        """Prefix of the metrics of a unit; the first denoising schedule has none."""
        return before(unit.bundle) + ("" if unit.stages == self._work.config.stages[0] else f"{unit.stages}/")

    def _pipe(self, bundle: int) -> SubjectPipeline:
        if self._loaded is None or self._loaded[0] != bundle:
            self._loaded = None  # one model at a time
            self._cache = LatentCache()
            self._loaded = (bundle, load_pipeline(self._work.bundles[bundle], self._device))
        return self._loaded[1]

    @cached_property
    def _metrics(self) -> list[metrics.Metric]:
        return metrics.metrics_of(self._work.config, self._device)

    @cached_property
    def _set_metrics(self) -> list[metrics.SetMetric]:
        config, device = self._work.config, self._device
        return [metric for kind in metrics.SET_METRICS if (metric := kind.create(config, device)) is not None]

    def _batch(self, pipe: SubjectPipeline, conditions: Sequence[int], targets: list[np.ndarray]) -> Batch:
        prompts = [self._work.pool[index].prompt for index in conditions]
        references = [self._references(index) for index in conditions]
        rows = self._preprocessor(pipe)(prompts, references, targets, truncate_prompts=True)
        return to_batch(rows).to(self._device)

    @staticmethod
    def _preprocessor(pipe: SubjectPipeline) -> Preprocessor:
        assert pipe.preprocessor is not None, "a pipeline from a bundle has one"
        return pipe.preprocessor


def _unreadable(case: str, sample: Sample, reason: str) -> Measurement:
    log.warning("case %s is not measured: %s", case, reason[:200])
    return Measurement(case, sample.subject, UNREADABLE + reason[:240], 1.0)


def _once(rows: Sequence[Measurement]) -> list[Measurement]:
    """The rows without repetitions: a photo that cannot be read is named once in a unit."""
    return list(dict.fromkeys(rows))
