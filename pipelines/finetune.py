"""A customer's photos to a personal model: ingest, curate, train an adapter, evaluate, register.

Each part is what its own job does; here they follow one another below one prefix, ``customers/CUSTOMER/SUBJECT/``, in
a folder for each set of photos.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from lookalike import config as configs
from lookalike.bundles.files import MANIFEST
from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.errors import ConfigError, InputError, LookalikeError
from lookalike.evaluation.gate import GateConfig
from lookalike.models.components import component_config
from lookalike.models.presets import LoraConfig, check_lora
from lookalike.registry import Registry, champion_now, personal_model_name, resolve, standing
from lookalike.registry.ownership import CUSTOMERS, customer_prefix
from lookalike.registry.versions import identify
from lookalike.storage import Store, list_versions, open_store, read_manifest, read_object
from lookalike.storage.claim import claim, read_claim
from lookalike.storage.isolation import check_isolation
from lookalike.storage.results import AGAIN, Kinds, read_result, write_result
from lookalike.tracking import tracking_uri
from lookalike.training.config import StageConfig, TrainConfig, ValidationConfig, WorkerConfig
from lookalike.values import check_values
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.curate.config import PlanConfig
from pipelines.curate.filters import FiltersConfig
from pipelines.curate.filters.no_pair import NoPair
from pipelines.entry import ray_session
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.run import RESULT as INGESTED
from pipelines.photos import MAX_PHOTOS, PhotoSet, check_number, photo_set
from pipelines.promote import PromoteConfig, promote
from pipelines.train.run import train

log = logging.getLogger(__name__)

RESULT = "result.json"
_RESULT: Kinds = {
    **{"customer": str, "subject": str, "model": str, "version": int, "promoted": bool},
    **{"bundle_uri": str, "bundle_sha256": str, "scores": str},
}
_OF_OTHERS = ("loss_gap", "loss_shuffled", "identity_margin", "mllm_only/loss_gap", "mllm_only/loss_shuffled")
# Locations count by their content. How it is computed changes no result.
_NOT_IDENTITY = (
    *("tracking", "workers", "actors", "micro_batch_size", "isolated"),
    *("model", "base", "store", "photos", "distractors", "filters"),
)


def default_stages() -> list[StageConfig]:
    """One stage: both conditions, as in the end of the base's curriculum."""
    return [StageConfig(name="personal", steps=60, conditions="mllm+references", learning_rate=1e-3, warmup_steps=5)]


def default_evaluation() -> dict[str, Any]:
    """A few images of the one subject, and its loss at many noise levels."""
    return {"max_samples": 64, "subjects": 1, "prompts_per_subject": 2, "stages": ["preset"], "steps": 16}


def default_filters() -> FiltersConfig:
    """Those of a curation, but for the ones that look for misfiled photos."""
    return FiltersConfig(skip=["off_subject"], no_pair=NoPair(min_similarity=-1.0))


@dataclass(frozen=True)
class FinetuneConfig:
    """Train a personal adapter on a few photos. The same command again resumes, or returns the finished result."""

    customer: str
    """Id of the tenant: lower-case letters, digits, ``_`` and ``-``."""
    subject: str
    """Id of the subject, of the same letters."""
    photos: str
    """URI with 4 to 20 photos of the subject: raw shards, or ``<subject>/<nn>.jpg``."""
    store: str
    """URI below which all of it is kept, in ``customers/CUSTOMER/SUBJECT/``."""
    model: str = "models:/lookalike-mini@champion"
    """What it starts from: a registered model, or a bundle's URI."""
    base: str | None = None
    """URI of that model's bundle, if it was moved since it was registered."""
    distractors: str | None = None
    """URI of a data set of other subjects, whose conditions the evaluation takes as the wrong ones."""
    filters: FiltersConfig = field(default_factory=default_filters)
    """What is dropped of the photos. By default a photo that does not resemble the others stays: the
    customer names the subject."""
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
    isolated: bool = False
    """Refuse to start unless this job's S3 credentials reach ``customers/CUSTOMER/`` of the store and nothing beside it
    (SECURITY.md)."""

    def __post_init__(self) -> None:
        check_values(self)


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Ingest, curate, train, evaluate and register; returns ``result.json``'s content with the ``champion`` as of now.

    Each set of photos has a place of its own, by its content: photos that were added, removed or replaced are a new
    input for the same command.

    Raises:
        ConfigError: an id that could leave its place, or settings that cannot work.
        InputError: too few or too many photos, none usable as a pair, or no such model.
        ConflictError: these photos were used with other settings.
    """
    name = personal_model_name(config.customer, config.subject)  # before any path is made of the ids
    home = open_store(config.store).child(CUSTOMERS).child(config.customer).child(config.subject)
    if customer_prefix(home.uri) != home.parent.uri:  # promotion would refuse it at the end
        raise ConfigError(
            "the store lies below a customer's prefix itself",
            value=config.store,
            fix=f"name a store whose location holds no folder {CUSTOMERS!r}",
        )
    if config.isolated:
        check_isolation(open_store(config.store), home.parent)
    base = resolve(config.model, config.tracking, config.base)
    photos = photo_set(open_store(config.photos), config.photos)
    bundle_uri = open_store(base.bundle_uri).uri
    _check_settings(config, home, bundle_uri)
    identity = configs.to_dict(config)
    content = {"base_sha256": base.bundle_sha256, "photos_sha256": photos.sha256}
    if _made_before(config, home):
        fingerprint = claim(home, identity, ignore=_NOT_IDENTITY, content=content)
        result = _earlier_result(config, name, home, fingerprint)
        write_result(home, RESULT, result, fingerprint)  # sealed, and with the places of now
        return _with_champion(config, name, result)
    place = home.child(f"photos-{photos.sha256[:12]}")
    fingerprint = claim(place, identity, ignore=_NOT_IDENTITY, content=content)
    if place.exists(RESULT):
        log.info("this finetune is done already: %s", place.uri)
        result = _earlier_result(config, name, place, fingerprint)
        write_result(place, RESULT, result, fingerprint)
    else:
        with ray_session():
            result = _run(config, name, home, place, photos, bundle_uri)
        result["base"] = {"uri": bundle_uri, "sha256": base.bundle_sha256}
        write_result(place, RESULT, result, fingerprint)
    write_result(home, RESULT, result, fingerprint)
    return _with_champion(config, name, result)


def _earlier_result(config: FinetuneConfig, name: str, place: Store, fingerprint: str) -> dict[str, Any]:
    """The content of ``result.json``, with the places of the bundle and the scores as they are now.

    Raises InputError for the result of another run or customer, or one that is not of the bundle that lies here.
    """
    result = read_result(place, RESULT, fingerprint, _RESULT)
    bundle, where = place.child("run").child("bundle"), place.uri_of(RESULT)
    if result is None or bundle.exists(MANIFEST):  # without a seal, as those of before: the bundle has to be here
        result = result or read_object(place, RESULT)
        if (found := identify(bundle.uri)) != result["bundle_sha256"]:
            what = f"the result is of the bundle {result['bundle_sha256'][:12]}, and here is {found[:12]}"
            raise InputError(what, value=where, fix=AGAIN)
    if (result["customer"], result["subject"], result["model"]) != (config.customer, config.subject, name):
        raise InputError(f"the result is of {result['model']!r:.80}, not of {name}", value=where, fix=AGAIN)
    return {**result, "bundle_uri": bundle.uri, "scores": place.child("scores").uri}


def _run(
    config: FinetuneConfig, name: str, home: Store, place: Store, photos: PhotoSet, bundle_uri: str
) -> dict[str, Any]:
    from lookalike.training.loop import TrainingDivergedError

    dataset = _dataset(config, home, place, photos, bundle_uri)

    try:
        trained = train(_train_config(config, place, dataset, bundle_uri))
    except TrainingDivergedError as error:
        fix = f"remove {place.uri} and run again with a lower learning_rate in --stages"
        raise TrainingDivergedError(error.what, value=error.value, fix=fix) from error
    scores = place.child("scores")
    evaluate(_evaluation(config, scores, dataset, trained["bundle_uri"], bundle_uri))
    decision = promote(
        PromoteConfig(
            model=name,
            scores=scores.uri,
            bundle=trained["bundle_uri"],
            out=place.child("promotion").uri,
            log=home.child("promotion-log").uri,
            champion_scores=_champion_scores(config, name, place, dataset, trained["bundle_sha256"]),
            tracking=config.tracking,
            gate=config.gate,
        )
    )
    return {
        "customer": config.customer,
        "subject": config.subject,
        "model": name,
        "version": decision["version"],
        "promoted": decision["promoted"],
        "bundle_uri": trained["bundle_uri"],
        "bundle_sha256": trained["bundle_sha256"],
        "scores": scores.uri,
    }


def _champion_scores(config: FinetuneConfig, name: str, place: Store, dataset: str, bundle_sha256: str) -> str | None:
    """Scores of the subject's champion on these photos: the gate compares what was measured on the same ones."""
    registry = Registry(tracking_uri(config.tracking))
    now = standing(registry, name)
    if now is None or now.champion is None or now.champion.bundle_sha256 == bundle_sha256:
        return None
    out = place.child(f"champion-{now.champion.bundle_sha256[:12]}")
    try:
        evaluate(_evaluation(config, out, dataset, now.champion.bundle_uri, None))
    except InputError as error:  # its bundle or base is not there: the gate names what is missing
        log.warning("the champion %s cannot be measured on these photos: %s", now.champion, error)
        return None
    return out.uri


def _check_settings(config: FinetuneConfig, home: Store, bundle_uri: str) -> None:
    """Raise what training or evaluation would raise of their settings, before the settings are recorded."""
    place = home.child("photos")
    bundle = local_bundle(bundle_uri)
    dataset = place.child("dataset").uri
    _train_config(config, place, dataset, bundle_uri)
    _evaluation(config, place, dataset, bundle_uri, bundle_uri)
    transformer = bundle / "transformer" / "config.json"
    if transformer.is_file():  # else it is a personal bundle, which training refuses by name
        check_lora(config.adapter, component_config(bundle, "transformer"))
    others = [metric for metric in _metrics(config.gate) if metric.startswith(_OF_OTHERS)]
    if config.distractors is None and others:
        log.warning(
            "without --distractors, a data set of other subjects, %s cannot be measured, and the gate will refuse the "
            "model; name one, or set --gate.floors and --gate.comparisons without them",
            " and ".join(others),
        )


def _metrics(gate: GateConfig) -> list[str]:
    return [item.metric for item in [*gate.floors]]


def _made_before(config: FinetuneConfig, home: Store) -> bool:
    """Whether the subject's prefix holds a finished finetune of these photos by an earlier version of this software."""
    if not home.exists(RESULT) or read_claim(home) is None:
        return False
    raw = read_claim(home.child("raw"))
    listing = [[info.key, info.size] for info in open_store(config.photos).list()]
    return raw is None or raw["identity"].get("source_identity") == configs.fingerprint(listing)


def _with_champion(config: FinetuneConfig, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the version that is champion now; None if the registry cannot be read."""
    try:
        return {**result, "champion": champion_now(name, config.tracking)}
    except LookalikeError as error:
        log.warning("the champion of %s cannot be read: %s", name, error)
        return {**result, "champion": None}


def _dataset(config: FinetuneConfig, home: Store, place: Store, photos: PhotoSet, bundle_uri: str) -> str:
    """Curate the photos, unless that is done: their place, or that of the store, may have changed since."""
    dataset = place.child("dataset")
    if not list_versions(dataset):
        raw = open_store(config.photos).uri
        if not photos.raw:
            raw = home.child("raw").child(photos.sha256[:12]).uri
            if not open_store(raw).exists(INGESTED):
                ingest(IngestConfig(source=open_store(config.photos).uri, raw=raw))
        most = read_preset(local_bundle(bundle_uri)).references.max_references
        try:
            curate(curation_of(config, raw, dataset.uri, most))
        except InputError as error:
            if not error.what.startswith("no usable pair"):
                raise
            raise InputError(
                error.what,
                value=config.photos,
                fix="replace photos that cannot be decoded, add sharp ones of the subject from other sides, and run "
                "the same command again; or loosen the filters that took most "
                "(such as --filters.skip '[off_subject, blurry]')",
            ) from error
    counts = read_manifest(dataset)["counts"]
    if photos.raw and counts["subjects_in"] != 1:
        raise InputError(
            f"photos of {counts['subjects_in']} subjects", value=config.photos, fix="name shards of one subject"
        )
    if photos.raw:
        check_number(counts["images_in"], config.photos)
    claim(place.child("curation"), {"filters": configs.to_dict(config.filters)})
    return dataset.uri


def curation_of(config: FinetuneConfig, raw: str, dataset: str, max_references: int) -> CurateConfig:
    """How one subject's photos are curated, for a model that reads up to ``max_references``.

    What is meant for many subjects is off: none is held out for validation, and none is kept from dominating.
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


def _train_config(config: FinetuneConfig, place: Store, dataset: str, base: str) -> TrainConfig:
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


def _evaluation(config: FinetuneConfig, out: Store, dataset: str, bundle: str, base: str | None) -> EvaluateConfig:
    """Measure ``bundle``, and its base beside it on the same samples."""
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
            f"evaluation: {error}", value=sorted(config.evaluation), fix="see jobs/evaluate.py --help"
        ) from None
