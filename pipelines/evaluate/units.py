"""Units of work of an evaluation: batches of losses, of images, of stand-ins, and the images of one subject."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import lookalike
from lookalike.bundles.manifest import BundleReference
from lookalike.config import fingerprint
from lookalike.evaluation.metrics import LABELS
from lookalike.evaluation.suites import Case, Photo, Sample, StandIn, Suite, stand_ins
from pipelines.evaluate.config import EvaluateConfig

_STAND_INS = 4  # of each kind for each subject, unless overridden
PHOTO = "photo "
"""Prefix of the case of a row about a photo that cannot be read; the beginning of its hash follows."""
MOST_OF_A_SET = 256  # images of a subject that are measured together, which are in memory at once


@dataclass(frozen=True)
class Unit:
    """A batch that is measured at once."""

    kind: Literal["losses", "images", "stand_ins", "set"]
    cases: tuple[Case, ...] = ()
    """What is measured; empty for stand-ins."""
    bundle: int = 0
    """Index of the bundle."""
    stages: str = ""
    """The denoising schedule of images; empty for losses and stand-ins."""
    stand_ins: tuple[StandIn, ...] = ()

    @cached_property
    def identity(self) -> str:
        """Hash of what is measured, by which metrics and which version of this software."""
        names = [case.case_id for case in self.cases] + [f"{each.kind}/{each.case_id}" for each in self.stand_ins]
        return fingerprint([lookalike.__version__, sorted(LABELS), self.kind, self.bundle, self.stages, names])


@dataclass(frozen=True)
class EvaluationWork:
    """Everything that an evaluation measures; sent to each actor once."""

    config: EvaluateConfig
    run: str
    """Fingerprint of the run's claim."""
    judge: str
    """Fingerprint of the protocols of the metrics, which name the revisions of their models."""
    bundles: tuple[BundleReference, ...]
    """The bundle, and the one it is compared with, if any."""
    pool: Mapping[int, Sample]
    """The samples of the suite's pool that units name, by their index."""
    photos: Mapping[int, tuple[Photo, ...]]
    """The photos of the subjects of those samples that images are generated for."""
    targets: Mapping[int, tuple[Photo, ...]]
    """The targets of the suite among them, and among the photos that stand-ins are compared with."""
    units: tuple[Unit, ...]

    def identity_of(self, number: int) -> str:
        """Hash of what the unit of this number measures and of its judge: rows by a model that moved are not kept."""
        return fingerprint([self.judge, self.units[number].identity])


def plan(
    config: EvaluateConfig,
    run: str,
    judge: str,
    bundles: Sequence[BundleReference],
    suite: Suite,
    cases: Sequence[Case],
    sets: bool,
) -> EvaluationWork:
    """List all units; those of sets come last, since they read the images of others."""
    losses = suite.losses(config.max_samples, config.conditions)
    units: list[Unit] = []
    for bundle in range(len(bundles)):
        units += [Unit("losses", part, bundle) for part in _parts(losses, config.loss_batch_size)]
        for stages in config.stages:
            units += [Unit("images", part, bundle, stages) for part in _parts(cases, config.image_batch_size)]
    number = _STAND_INS if config.stand_ins is None else config.stand_ins
    photos = stand_ins(suite, cases, number) if number else []
    units += [Unit("stand_ins", stand_ins=part) for part in _parts(photos, config.image_batch_size)]
    if sets:
        units += _sets(config, len(bundles), suite, cases)
    named = {i for case in [*losses, *cases] for i in (case.target, case.conditions, case.other) if i is not None}
    pool = {index: suite.pool[index] for index in sorted(named)}
    shown = {case.target: suite.photos_for(suite.pool[case.target]) for case in cases}
    targets = {index: suite.targets_for(suite.pool[index]) for index in shown}
    return EvaluationWork(config, run, judge, tuple(bundles), pool, shown, targets, tuple(units))


def _sets(config: EvaluateConfig, bundles: int, suite: Suite, cases: Sequence[Case]) -> Iterator[Unit]:
    by_subject: dict[str, list[Case]] = {}
    for case in cases:
        by_subject.setdefault(suite.pool[case.target].subject, []).append(case)
    for bundle in range(bundles):
        for stages in config.stages:
            for subject, own in by_subject.items():
                order = suite.rng(subject, "set").permutation(len(own))[:MOST_OF_A_SET]
                yield Unit("set", tuple(own[index] for index in sorted(order)), bundle, stages)


def _parts(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[first : first + size]) for first in range(0, len(items), size)]


def image_key(bundle: int, case: Case, stages: str) -> str:
    """Key of a generated image below the evaluation's prefix."""
    return f"images/{before(bundle)}{stages.replace('/', '-')}/{case.case_id}.png"


def before(bundle: int) -> str:
    """Prefix of the names of metrics and of keys: ``before/`` for the bundle that another one is compared with."""
    return "before/" if bundle else ""
