"""The configurations of the jobs that a finetune consists of, and the check of its settings before any work."""

import logging

from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.errors import ConfigError
from lookalike.models.components import component_config
from lookalike.models.presets import check_lora
from lookalike.registry import personal_model_name
from lookalike.storage import Store
from lookalike.training.config import TrainConfig
from lookalike.training.loop_config import ValidationConfig
from pipelines.curate import CurateConfig
from pipelines.curate.config import PlanConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.photos import MAX_PHOTOS

log = logging.getLogger(__name__)

_OF_OTHERS = ("loss_gap", "loss_shuffled", "identity_margin", "mllm_only/loss_gap", "mllm_only/loss_shuffled")


def curation_of(config: FinetuneConfig, raw: str, dataset: str, max_references: int) -> CurateConfig:
    """The configuration that curates one subject's photos for a model that takes up to ``max_references``.

    The rules for many subjects are off: no subject is held out for validation, and none is limited to its share.
    """
    usual = PlanConfig()
    return CurateConfig(
        raw=raw,
        dataset=dataset,
        filters=config.filters,
        plan=PlanConfig(
            max_references=min(usual.max_references, max_references),
            max_triplets_per_subject=MAX_PHOTOS * usual.max_triplets_per_target,
            validation_fraction=0.0,
            min_validation_subjects=0,
        ),
        actors=config.actors,
    )


def training_of(config: FinetuneConfig, place: Store, dataset: str, base: str) -> TrainConfig:
    return TrainConfig(
        dataset=dataset,
        run=place.child("run").uri,
        preset=read_preset(local_bundle(base)).name,
        base=base,
        adapter=config.adapter,
        stages=config.stages,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        validation=ValidationConfig(samples=0),
        keep_samples=True,  # of a few photos
        workers=config.workers,
        tracking=config.tracking,
        experiment=config.customer,
        owner=personal_model_name(config.customer, config.subject),
    )


def evaluation_of(config: FinetuneConfig, out: Store, dataset: str, bundle: str, base: str | None) -> EvaluateConfig:
    """The configuration that measures ``bundle``, and ``base`` beside it on the same samples."""
    settings = {
        "bundle": bundle,
        "suite": dataset,
        "out": out.uri,
        "base": base,
        "split": "train",
        "distractors": config.distractors,
        "seed": config.seed,
        "actors": config.actors,
    }
    try:
        return EvaluateConfig(**{**config.evaluation, **settings})
    except TypeError as error:
        raise ConfigError(
            f"evaluation: {error}", value=sorted(config.evaluation), fix="see jobs/evaluate.py run --help"
        ) from None


def check_settings(config: FinetuneConfig, home: Store, bundle_uri: str) -> None:
    """Raise the errors that training or evaluation would raise for their settings, before the settings are recorded."""
    place = home.child("photos")
    bundle = local_bundle(bundle_uri)
    dataset = place.child("dataset").uri
    training_of(config, place, dataset, bundle_uri)
    evaluation_of(config, place, dataset, bundle_uri, bundle_uri)
    transformer = bundle / "transformer" / "config.json"
    if transformer.is_file():  # else it is a personal bundle, which training refuses by name
        check_lora(config.adapter, component_config(bundle, "transformer"))
    others = [metric for metric in (floor.metric for floor in config.gate.floors) if metric.startswith(_OF_OTHERS)]
    if config.distractors is None and others:
        log.warning(
            "without --distractors, a data set of other subjects, %s cannot be measured, and the gate will refuse the "
            "model; name one, or set --gate.floors and --gate.comparisons without them",
            " and ".join(others),
        )
