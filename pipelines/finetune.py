"""A customer's photographs to a personal model: ingest, curate, train an adapter, evaluate, register.

Each part is what its own job does; here they follow one another below one prefix, ``customers/CUSTOMER/SUBJECT/``.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from lookalike import config as configs
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.gate import GateConfig
from lookalike.models.presets import LoraConfig
from lookalike.registry import personal_model_name, resolve
from lookalike.storage import Store, open_store, read_object
from lookalike.storage.claim import claim
from lookalike.training.bundles import local_bundle
from lookalike.training.config import StageConfig, TrainConfig, ValidationConfig, WorkerConfig
from lookalike.values import check_values
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.entry import ray_session
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.ingest import IngestConfig, ingest
from pipelines.promote import PromoteConfig, promote
from pipelines.train.run import train

log = logging.getLogger(__name__)

MIN_PHOTOS, MAX_PHOTOS = 4, 20
RESULT = "result.json"


def default_stages() -> list[StageConfig]:
    """One stage: both conditions, as in the end of the base's curriculum."""
    return [StageConfig(name="personal", steps=60, conditions="mllm+references", learning_rate=1e-3, warmup_steps=5)]


def default_evaluation() -> dict[str, Any]:
    """A few images of the one subject, and its loss at many noise levels."""
    return {"max_samples": 64, "subjects": 1, "prompts_per_subject": 2, "stages": ["preset"], "steps": 16}


@dataclass(frozen=True)
class FinetuneConfig:
    """Train a personal adapter on a few photographs. The same command again resumes, or says that it is done."""

    customer: str
    """Id of the tenant: lower-case letters, digits, ``_`` and ``-``."""
    subject: str
    """Id of the subject, likewise."""
    photos: str
    """URI with 4 to 20 photographs of the subject: raw shards, or ``<subject>/<nn>.jpg``."""
    store: str
    """URI below which all of it is kept, in ``customers/CUSTOMER/SUBJECT/``."""
    model: str = "models:/lookalike-mini@champion"
    """What it starts from: a registered model, or a bundle's URI."""
    distractors: str | None = None
    """URI of a data set of other subjects, whose conditions the evaluation takes as the wrong ones."""
    adapter: LoraConfig = field(default_factory=LoraConfig)
    """LoRA on the DiT."""
    stages: list[StageConfig] = field(default_factory=default_stages)
    """The curriculum."""
    batch_size: int = 8
    """Samples per optimizer step over all workers."""
    micro_batch_size: int = 4
    """Samples per forward pass of one worker."""
    evaluation: dict[str, Any] = field(default_factory=default_evaluation)
    """Settings of the evaluation before and after (see ``jobs/evaluate.py``)."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What the personal model has to show to become its subject's champion."""
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    """The worker group."""
    actors: ActorConfig = field(default_factory=ActorConfig)
    """Who curates and evaluates. Changes no result."""
    seed: int = 0
    """Of order, noise and initial adapter."""
    tracking: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        check_values(self)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Run the whole way; returns what ``result.json`` holds.

    Raises:
        ConfigError: an id that could leave its place, or settings that cannot work.
        InputError: too few or too many photographs, none usable as a pair, or no such model.
        ConflictError: the subject's prefix holds another finetune.
    """
    name = personal_model_name(config.customer, config.subject)  # before any path is made of the ids
    home = open_store(config.store).child("customers").child(config.customer).child(config.subject)
    base = resolve(config.model, config.tracking)
    identity = {**configs.to_dict(config), "base_sha256": base.bundle_sha256}
    claim(home, identity, ignore=("tracking", "workers", "actors", "micro_batch_size", "model", "store"))
    if home.exists(RESULT):
        log.info("this finetune is done already: %s", home.uri)
        return read_object(home, RESULT)
    bundle_uri = open_store(base.bundle_uri).uri
    with ray_session():
        dataset = _dataset(config, home)
        trained = train(_train_config(config, home, dataset, bundle_uri))
        _evaluate(config, home, dataset, trained["bundle_uri"], bundle_uri)
        decision = promote(
            PromoteConfig(
                model=name,
                scores=home.child("scores").uri,
                out=home.child("promotion").uri,
                log=home.child("promotion-log").uri,
                tracking=config.tracking,
                gate=config.gate,
            )
        )
    result = {
        "customer": config.customer,
        "subject": config.subject,
        "model": name,
        "version": decision["version"],
        "promoted": decision["promoted"],
        "bundle_uri": trained["bundle_uri"],
        "bundle_sha256": trained["bundle_sha256"],
        "base": {"uri": bundle_uri, "sha256": base.bundle_sha256},
        "scores": home.child("scores").uri,
    }
    home.write(RESULT, configs.canonical_json(result).encode())
    return result


def _dataset(config: FinetuneConfig, home: Store) -> str:
    """Curate the photographs; a personal set is small, so that every pair counts and none is held out."""
    photos = open_store(config.photos)
    keys = [info.key for info in photos.list()]
    if not keys:
        raise InputError("no photographs", value=config.photos, fix=f"bring {MIN_PHOTOS} to {MAX_PHOTOS} of them")
    raw = photos.uri
    if not any(key.endswith(".tar") for key in keys):
        raw = home.child("raw").uri
        ingest(IngestConfig(source=photos.uri, raw=raw))
    dataset = home.child("dataset").uri
    counts = curate(CurateConfig(raw=raw, dataset=dataset, actors=config.actors)).manifest["counts"]
    if counts["subjects_in"] != 1:
        raise InputError(
            f"photographs of {counts['subjects_in']} subjects", value=config.photos, fix="bring one subject at a time"
        )
    if not MIN_PHOTOS <= counts["images_in"] <= MAX_PHOTOS:
        raise InputError(
            f"{counts['images_in']} photographs", value=config.photos, fix=f"bring {MIN_PHOTOS} to {MAX_PHOTOS}"
        )
    return dataset


def _train_config(config: FinetuneConfig, home: Store, dataset: str, base: str) -> TrainConfig:
    return TrainConfig(
        dataset=dataset,
        run=home.child("run").uri,
        preset=_preset_name(base),
        base=base,
        adapter=config.adapter,
        stages=config.stages,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        validation=ValidationConfig(samples=0),
        keep_samples=True,  # of a few photographs
        workers=config.workers,
        tracking=config.tracking,
        experiment=config.customer,
    )


def _preset_name(bundle_uri: str) -> str:
    from lookalike.models.bundle import read_preset

    return read_preset(local_bundle(bundle_uri)).name


def _evaluate(config: FinetuneConfig, home: Store, dataset: str, bundle: str, base: str) -> None:
    """Measure the personal bundle, and its base beside it on the same samples."""
    settings = {
        "bundle": bundle,
        "suite": dataset,
        "out": home.child("scores").uri,
        "base": base,
        "split": "train",
        "distractors": config.distractors,
        "seed": config.seed,
        "actors": config.actors,
    }
    try:
        chosen = EvaluateConfig(**{**config.evaluation, **settings})
    except TypeError as error:
        raise ConfigError(
            f"evaluation: {error}", value=sorted(config.evaluation), fix="see jobs/evaluate.py --help"
        ) from None
    evaluate(chosen)
