"""A customer's photos to a personal model: ingest, curate, train an adapter, evaluate, register.

Each part is another job's pipeline; here they run one after the other below one prefix,
``customers/CUSTOMER/SUBJECT/``, in a folder for each set of photos.
"""

import logging
from dataclasses import replace
from typing import Any

from lookalike import config as configs
from lookalike.bundles.manifest import MANIFEST
from lookalike.errors import ConfigError, InputError, LookalikeError, RefusedError
from lookalike.evaluation.gate import gate_identity
from lookalike.progress.cancel import Watch, check_not_cancelled, stops_when_cancelled
from lookalike.progress.webhooks import Deliverer, delivering
from lookalike.registry import Registry, champion_version, identify, personal_model_name, resolve, standing
from lookalike.registry.names import check_one_customer, customer_prefix, owner_of
from lookalike.storage import Store, open_store
from lookalike.storage.claim import AGAIN, read_claim, read_result, run_once, write_result
from lookalike.storage.erasing import CUSTOMERS
from lookalike.storage.isolation import check_isolation
from lookalike.storage.lease import hold
from lookalike.tracking import tracking_uri
from lookalike.training.stopping import STOP
from pipelines.entry import ray_session
from pipelines.evaluate import evaluate
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.datasets import make_datasets
from pipelines.finetune.parts import Datasets, check_settings, evaluation_of, training_of
from pipelines.finetune.photos import PhotoSet, open_photos, photo_set
from pipelines.finetune.progress import Progress, check_subject
from pipelines.finetune.request import fingerprint_of, home_of, record_decision, refuse_expired, take_key
from pipelines.promote import PromoteConfig, promote
from pipelines.train.run import Fit, train
from pipelines.train.worker_group import fit

log = logging.getLogger(__name__)

RESULT, LEASE = "result.json", "lease"
_RESULT = {
    **{"customer": str, "subject": str, "model": str, "version": int, "promoted": bool},
    **{"bundle_uri": str, "bundle_sha256": str, "scores": str},
}


def finetune(config: FinetuneConfig, fit: Fit = fit) -> dict[str, Any]:
    """Ingest, curate, train, evaluate and register.

    Returns the content of ``result.json`` with the ``champion`` as of now. ``fit`` trains, as in
    :func:`pipelines.train.run.train`.

    Each set of photos has a place of its own, by its content: photos that were added, removed or replaced are a new
    input for the same command.

    Raises:
        ConfigError: an id that could leave its place, or settings that cannot work.
        InputError: too few or too many photos, no two that can be used as a pair, or no such model.
        ConflictError: these photos were used with other settings, or the key belongs to another request.
        CancelledError: the request was cancelled.
    """
    home, name = _checked_home(config), personal_model_name(config.customer, config.subject)
    base = resolve(config.model, config.tracking, config.base)
    check_one_customer({"the finetune": name, "the bundle of --model": owner_of(base.bundle_uri)})
    photos = _photos(config)
    bundle_uri = open_store(base.bundle_uri).uri
    check_settings(config, home, bundle_uri)
    content: dict[str, Any] = {"base_sha256": base.bundle_sha256, "photos_sha256": photos.sha256}
    content["gate"] = gate_identity(config.gate, "personal")
    place = home if _made_before(config, home) else home.child(f"photos-{photos.sha256[:12]}")
    request = fingerprint_of(config, content)
    webhooks = None if config.webhook is None else Deliverer(place, config.webhook, config.customer)
    take_key(home, config, request)

    def work(run: str) -> dict[str, Any]:
        with hold(place.child(LEASE)):  # an erasure waits until the lease ends
            progress = Progress(home, place, config, request)
            with progress.ending(), stops_when_cancelled(place, lambda: place.child("run").write(STOP, b"")) as watch:
                check_subject(config, place, photos, progress)
                progress.reached("queued")
                with ray_session():
                    result = _run(config, name, home, place, photos, bundle_uri, progress, watch, fit)
            done = record({**result, "base": {"uri": bundle_uri, "sha256": base.bundle_sha256}}, run)
            progress.finished(done)
        return done

    def record(result: dict[str, Any], run: str) -> dict[str, Any]:
        """Write the result, sealed and with the places of now, also where the subject's newest result lies."""
        write_result(place, RESULT, result, run)
        if place is not home:
            write_result(home, RESULT, result, run)
        return result

    def earlier(run: str) -> dict[str, Any]:
        refuse_expired(place)
        result = record(_earlier_result(config, name, place, run), run)
        record_decision(place, result)  # of a job that was killed before it did
        return result

    with delivering(webhooks):
        result = run_once(place, RESULT, config, content=content, earlier=earlier, work=work)
        return _with_champion(config, name, result)


def _checked_home(config: FinetuneConfig) -> Store:
    """The store of the subject. Raises ConfigError for ids, a place or credentials that cannot work."""
    home = home_of(config)
    if customer_prefix(home.uri) != home.parent.uri:  # promotion would refuse the bundle at the end
        raise ConfigError(
            "the store lies below a customer's prefix itself",
            value=config.store,
            fix=f"name a store whose location holds no folder {CUSTOMERS!r}",
        )
    mine = {"--photos": config.photos, "--model": config.model, "--base": config.base}
    name = personal_model_name(config.customer, config.subject)
    check_one_customer({"the finetune": name, **mine, "--distractors": config.distractors})
    if config.isolated:
        check_isolation(open_store(config.store), home.parent)
    return home


def _photos(config: FinetuneConfig) -> PhotoSet:
    photos = photo_set(open_photos(config.photos), config.photos)
    if photos.raw and config.class_name is not None:
        fix = "leave it out, and set `class` in the samples' JSON"
        raise ConfigError("class_name is for photo files, not for raw shards", value=config.class_name, fix=fix)
    return photos


def _run(
    config: FinetuneConfig,
    name: str,
    home: Store,
    place: Store,
    photos: PhotoSet,
    bundle_uri: str,
    progress: Progress,
    watch: Watch,
    fit: Fit,
) -> dict[str, Any]:
    from lookalike.training.loop import TrainingDivergedError

    data = make_datasets(config, home, place, photos, bundle_uri)
    check_not_cancelled(place)
    progress.reached("started", held_out=data.held_out)
    try:
        with watch.training():
            trained = train(training_of(config, place, data.training, bundle_uri), fit)
    except TrainingDivergedError as error:
        fix = f"remove {place.uri} and run again with a lower learning_rate in --stages"
        raise TrainingDivergedError(error.what, value=error.value, fix=fix) from error
    check_not_cancelled(place)
    scores = place.child("scores")
    evaluate(evaluation_of(config, scores, data, trained["bundle_uri"], bundle_uri))
    progress.reached("samples", images=scores.child("images").uri)
    progress.reached("evaluated", scores=scores.uri)
    check_not_cancelled(place)
    decision = promote(
        PromoteConfig(
            model=name,
            scores=scores.uri,
            bundle=trained["bundle_uri"],
            out=place.child("promotion").uri,
            log=home.child("promotion-log").uri,
            champion_scores=_champion_scores(config, name, place, data, trained["bundle_sha256"]),
            tracking=config.tracking,
            gate=replace(config.gate, seen_photos=True) if data.held_out == 0 else config.gate,
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
        "decision": place.child("promotion").uri,
        "verdict": decision.get("verdict", ""),
        "held_out": data.held_out,
    }


def _champion_scores(config: FinetuneConfig, name: str, place: Store, data: Datasets, bundle_sha256: str) -> str | None:
    """Scores of the subject's champion on these photos: the gate compares what was measured on the same ones."""
    registry = Registry(tracking_uri(config.tracking))
    try:
        now = standing(registry, name)
    except RefusedError:  # a new model to a user without a default permission; else promotion names what is missing
        return None
    if now is None or now.champion is None or now.champion.bundle_sha256 == bundle_sha256:
        return None
    out = place.child(f"champion-{now.champion.bundle_sha256[:12]}")
    try:
        evaluate(evaluation_of(config, out, data, now.champion.bundle_uri, None))
    except InputError as error:  # its bundle or base is not there: the gate names what is missing
        log.warning("the champion %s cannot be measured on these photos: %s", now.champion, error)
        return None
    return out.uri


def _with_champion(config: FinetuneConfig, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result with the version that is champion now; None if the registry cannot be read."""
    try:
        return {**result, "champion": champion_version(Registry(tracking_uri(config.tracking)), name)}
    except LookalikeError as error:
        log.warning("the champion of %s cannot be read: %s", name, error)
        return {**result, "champion": None}


def _earlier_result(config: FinetuneConfig, name: str, place: Store, fingerprint: str) -> dict[str, Any]:
    """The content of ``result.json``, with the places of the bundle and the scores as they are now.

    Raises InputError for the result of another run or customer, or one that is not of the bundle that lies here.
    """
    result, sealed = read_result(place, RESULT, fingerprint, _RESULT)
    bundle, where = place.child("run").child("bundle"), place.uri_of(RESULT)
    here = identify(bundle.uri) if not sealed or bundle.exists(MANIFEST) else None  # earlier versions wrote no seal
    if here not in (None, result["bundle_sha256"]):
        what = f"the result is of the bundle {result['bundle_sha256'][:12]}, and here is {here:.12}"
        raise InputError(what, value=where, fix=AGAIN)
    if (result["customer"], result["subject"], result["model"]) != (config.customer, config.subject, name):
        raise InputError(f"the result is of {result['model']!r:.80}, not of {name}", value=where, fix=AGAIN)
    places = {"bundle_uri": bundle.uri, "scores": place.child("scores").uri}
    if "decision" in result:  # results of earlier versions name none
        places["decision"] = place.child("promotion").uri
    return {**result, **places}


def _made_before(config: FinetuneConfig, home: Store) -> bool:
    """Whether the subject's prefix holds a finished finetune of these photos by an earlier version of this software."""
    if not home.exists(RESULT) or read_claim(home) is None:
        return False
    raw = read_claim(home.child("raw"))
    listing = [[info.key, info.size] for info in open_store(config.photos).list()]
    return raw is None or raw["identity"].get("source_identity") == configs.fingerprint(listing)
