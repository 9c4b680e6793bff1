"""The configurations of the jobs that a finetune consists of, and the check of its settings before any work."""

import logging
from dataclasses import dataclass, replace

from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.data.triplets import Split
from lookalike.errors import ConfigError
from lookalike.evaluation.gate import how_to_measure
from lookalike.evaluation.gate_config import checks_of
from lookalike.models.components import component_config
from lookalike.models.presets import check_lora
from lookalike.registry import personal_model_name
from lookalike.storage import Store
from lookalike.training.config import TrainConfig
from lookalike.training.loop_config import ValidationConfig
from pipelines.curate import CurateConfig
from pipelines.curate.config import PlanConfig
from pipelines.curate.filters.held_out import HeldOut, Role
from pipelines.evaluate import EvaluateConfig
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.photos import MAX_PHOTOS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """The data sets of one set of photos."""

    training: str
    """URI of the data set to train on. It holds no byte of a held-out photo."""
    suite: str
    """URI of the data set to evaluate on: targets are held-out photos, references those of ``training``. The same as
    ``training`` if no photo is held out."""
    split: Split
    """Split of ``suite`` to evaluate: ``validation`` if training never saw its targets."""
    held_out: int
    """Number of held-out photos."""


def curation_of(config: FinetuneConfig, raw: str, dataset: str, max_references: int, role: Role) -> CurateConfig:
    """The configuration that curates one subject's photos for a model that takes up to ``max_references``.

    The rules for many subjects are off: no subject is held out for validation, and none is limited to its share.
    Photos are held out instead (``role``, see :class:`~pipelines.curate.filters.held_out.HeldOut`).
    """
    usual = PlanConfig()
    held_out = HeldOut(config.held_out_photos, role) if config.held_out_photos else None
    return CurateConfig(
        raw=raw,
        dataset=dataset,
        filters=replace(config.filters, held_out=held_out),
        plan=PlanConfig(
            max_references=min(usual.max_references, max_references),
            max_triplets_per_subject=MAX_PHOTOS * usual.max_triplets_per_target,
            validation_fraction=0.0,
            min_validation_subjects=0,
        ),
        actors=config.actors,
    )


def training_of(config: FinetuneConfig, place: Store, dataset: str, base: str) -> TrainConfig:
    preset = read_preset(local_bundle(base))
    return TrainConfig(
        dataset=dataset,
        run=place.child("run").uri,
        preset=preset.name,
        base=base,
        adapter=config.adapter,
        stages=config.phases(preset.personal_learning_rate),
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        validation=ValidationConfig(samples=0),
        keep_samples=True,  # of a few photos
        workers=config.workers,
        tracking=config.tracking,
        experiment=config.customer,
        events=place.uri,
        owner=personal_model_name(config.customer, config.subject),
    )


def evaluation_of(config: FinetuneConfig, out: Store, data: Datasets, bundle: str, base: str | None) -> EvaluateConfig:
    """The configuration that measures ``bundle``, and ``base`` beside it on the same samples."""
    settings = {
        "bundle": bundle,
        "suite": data.suite,
        "out": out.uri,
        "base": base,
        "split": data.split,
        "distractors": config.distractors,
        "seed": config.seed,
        "actors": config.actors,
    }
    given = dict(config.evaluation)
    if data.held_out:  # the model has seen the references: likeness to the held-out photos counts
        usual = {"identity": {"references": "targets"}, "memorisation": {}}
        given["metrics"] = usual | given.get("metrics", {})
    try:
        return EvaluateConfig(**{**given, **settings})
    except TypeError as error:
        raise ConfigError(
            f"evaluation: {error}", value=sorted(config.evaluation), fix="see jobs/evaluate.py run --help"
        ) from None


def check_settings(config: FinetuneConfig, home: Store, bundle_uri: str) -> None:
    """Raise the errors that training or evaluation would raise for their settings, before the settings are recorded."""
    place = home.child("photos")
    bundle = local_bundle(bundle_uri)
    data = Datasets(place.child("dataset").uri, place.child("held-out").uri, "validation", config.held_out_photos)
    training_of(config, place, data.training, bundle_uri)
    evaluation_of(config, place, data, bundle_uri, bundle_uri)
    transformer = bundle / "transformer" / "config.json"
    if transformer.is_file():  # else it is a personal bundle, which training refuses by name
        check_lora(config.adapter, component_config(bundle, "transformer"))
    needed = {bound.metric for bound in checks_of(config.gate).bounds if not bound.if_measured}
    others = sorted(metric for metric in needed if "--distractors" in how_to_measure(metric))
    if config.distractors is None and others:
        log.warning(
            "without --distractors, a data set of other subjects, %s cannot be measured, and the gate will refuse the "
            "model; name one, or set --gate.floors without them",
            " and ".join(others),
        )
