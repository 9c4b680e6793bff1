"""One training run from its configuration to its bundle."""

import logging
import os
import sys
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from lookalike import config as configs
from lookalike.bundles.manifest import latent_identity, read_preset
from lookalike.bundles.manifest import read_manifest as read_bundle_manifest
from lookalike.bundles.transfer import local_bundle, verified_reference
from lookalike.errors import InputError, LookalikeError, first_line
from lookalike.storage import (
    Store,
    latest_version,
    list_versions,
    open_store,
    read_lines,
    read_manifest,
    read_object,
    version_store,
)
from lookalike.storage.arrow import arrow_filesystem
from lookalike.storage.claim import claim, read_claim
from lookalike.storage.lease import Lease, hold
from lookalike.storage.results import AGAIN, read_result, write_result
from lookalike.tracking import tracking_uri
from lookalike.tracking.events import PENDING
from lookalike.training import checkpoint
from lookalike.training.config import TrainConfig, WorkerConfig
from lookalike.training.epoch_plan import EpochPlan
from lookalike.training.run_bundles import finished_bundle, initial_bundle
from lookalike.training.stopping import stops_on_sigterm
from lookalike.training.watchdog import HANGS
from lookalike.training.zero_config import check_schema, zero3_config
from pipelines.entry import ray_session
from pipelines.train.samples import TripletSource
from pipelines.train.settings import LEASE, WorkerSettings, train_worker
from pipelines.train.tracked import record_result, tracking_run

if TYPE_CHECKING:
    from ray.train import RunConfig

log = logging.getLogger(__name__)

RESULT = "result.json"
_RESULT = {"bundle_uri": str, "bundle_sha256": str, "steps": int, "tracking_run": str, "stages": list}
# What may change between two attempts of one run without changing what it learns. Data set and base count by content.
_NOT_IDENTITY = (
    "run",
    "dataset",
    "base",
    "tracking",
    "experiment",
    "owner",
    "workers",
    "micro_batch_size",
    "activation_checkpointing",
    "keep_samples",
    "zero",
    "images",
    "checkpoint",
    "safety",
    "log_every",
    "export_dtype",
    "export_lora",
)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train and export; returns what ``result.json`` holds. The same configuration again resumes or returns at once.

    Raises:
        BusyError: another process trains this run at the moment.
        ConflictError: ``config.run`` holds a run of another configuration, of another snapshot or of another base.
        InputError: no snapshot, no triplets, a base that is incomplete.
        StoppedError: SIGTERM came; the same configuration again resumes from the checkpoint that was made.
        TrainingDivergedError: the loss or its gradient is not finite or too large.
    """
    started = time.perf_counter()
    dataset, store = open_store(config.dataset), open_store(config.run)
    # Workers run in other folders than this process: what was relative to here becomes absolute.
    config = replace(config, dataset=dataset.uri, run=store.uri, tracking=tracking_uri(config.tracking))
    version = _version(dataset, store)
    manifest = read_manifest(dataset, version)
    snapshot = {"uri": dataset.uri, "version": version, "sha256": configs.fingerprint(manifest)}
    content: dict[str, Any] = {"snapshot": snapshot}
    if config.base is not None:
        content["base_sha256"] = verified_reference(config.base).sha256
    fingerprint = claim(store, configs.to_dict(config), ignore=_NOT_IDENTITY, content=content)
    if store.exists(RESULT):
        log.info("this run is done already: %s", store.uri)
        return _earlier_result(config, store, fingerprint)

    with hold(store.child(LEASE), above=checkpoint.latest_lease(store)) as lease:
        initial = initial_bundle(config, store)
        latents = _latents_fit(manifest.get("latents"), initial.uri)
        uri, sha256 = version_store(dataset, version).uri, configs.fingerprint(manifest)
        source = TripletSource(uri, "train", initial.uri, latents, sha256, initial.sha256)
        references_fit(source)
        settings = WorkerSettings(
            config=config,
            source=source,
            plan=EpochPlan(source.table().num_rows, config.batch_size, config.seed),
            fingerprint=fingerprint,
            base_sha256=initial.sha256,
            **tracking_run(config, store, snapshot),
            terminal=sys.stderr.isatty(),
            lease=lease.number,
        )
        log.info("ready for its ranks in %.1f s", time.perf_counter() - started)
        with _ray_for(config), stops_on_sigterm(store, config.safety.grace_s):
            _fit(settings, store, lease)
        return _finish(settings, store, snapshot, lease)


def _ray_for(config: TrainConfig) -> AbstractContextManager[None]:
    """A plain process that keeps its samples has nothing to ask of Ray."""
    return nullcontext() if config.workers.num_workers == 0 and config.keep_samples else ray_session()


def _latents_fit(encoded: dict[str, Any] | None, bundle_uri: str) -> bool:
    """Whether the snapshot's latents are those that the bundle's VAE would make."""
    if encoded is None:
        return False
    fit: bool = encoded == latent_identity(read_bundle_manifest(local_bundle(bundle_uri)))
    if not fit:
        log.warning("the snapshot's latents are of another VAE or size; the VAE runs in training")
    return fit


def references_fit(source: TripletSource) -> None:
    """Raise InputError where a triplet has more references than the bundle's preset takes, before anything starts."""
    preset = read_preset(local_bundle(source.bundle_uri))
    found = int(pc.max(pc.list_value_length(source.table()["reference_offsets"])).as_py() or 0)
    if found > preset.references.max_references:
        raise InputError(
            f"triplets have up to {found} references, the preset {preset.name} takes"
            f" {preset.references.max_references}",
            value=source.snapshot_uri,
            fix=f"curate with plan.max_references={preset.references.max_references}",
        )


def _fit(settings: WorkerSettings, store: Store, lease: Lease) -> None:
    config, workers = settings.config, settings.config.workers
    if checkpoint.newest(store) >= config.total_steps:
        return
    if workers.num_workers == 0:
        from pipelines.train.worker import run_rank

        run_rank(settings)
        return
    from ray.exceptions import RayActorError
    from ray.train import ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    check_schema(zero3_config(config, workers.num_workers))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that tells nobody: we look at SIGTERM
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=_from_to(workers),
            elastic_resize_monitor_interval_s=workers.resize_every_s,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        run_config=attempt_config(store, workers.max_failures),
    )
    try:
        ended_early = trainer.fit().return_value
    except TrainingFailedError as error:
        lease.check()  # a lost lease ends the ranks, and is the reason then
        hangs = sorted(info.key for info in store.list(f"{HANGS}/"))
        raise LookalikeError(
            f"training failed {workers.max_failures + 1} times",
            value=str(error),
            fix=f"stacks of ranks that hung are in {store.uri}: {', '.join(hangs)}" if hangs else "see the log above",
        ) from error
    except RayActorError as error:  # the controller died, and with it the ranks
        raise LookalikeError(
            "training lost its controller",
            value=first_line(error),
            fix="run the same command again: it resumes from the last checkpoint",
        ) from error
    if ended_early is not None:
        raise ended_early


def _from_to(workers: WorkerConfig) -> int | tuple[int, int]:
    return workers.num_workers if workers.min_workers is None else (workers.min_workers, workers.num_workers)


def attempt_config(store: Store, max_failures: int) -> "RunConfig":
    """What Ray Train keeps of one attempt, below the run in ``store``.

    Ray Train resumes silently what it finds under a name, and stops at what it misses there. Our checkpoints are the
    truth, so each attempt has a name that nobody had.
    """
    from ray.train import FailureConfig, RunConfig

    filesystem, path = arrow_filesystem(store.child("ray"))
    return RunConfig(
        name=f"attempt-{uuid.uuid4().hex[:12]}",
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=max_failures),
    )


def _version(dataset: Store, run: Store) -> int:
    """The snapshot that the run has begun with, if the data set still has it; else the newest one."""
    recorded = (read_claim(run) or {}).get("identity", {}).get("snapshot")
    newest = latest_version(dataset)
    if not isinstance(recorded, dict) or recorded.get("version") not in list_versions(dataset):
        return newest
    version = int(recorded["version"])
    same = configs.fingerprint(read_manifest(dataset, version)) == recorded.get("sha256")
    if same and version != newest:
        log.info("the run continues with snapshot %d, with which it began; the newest is %d", version, newest)
    return version if same else newest


def _earlier_result(config: TrainConfig, store: Store, fingerprint: str) -> dict[str, Any]:
    """The content of ``result.json``, with the bundle's current place.

    Raises InputError for the result of another run, or one that is not of the bundle that lies here.
    """
    sealed = read_result(store, RESULT, fingerprint, _RESULT)
    result = sealed or read_object(store, RESULT)
    bundle, where = finished_bundle(store), store.uri_of(RESULT)
    if bundle is not None and bundle.sha256 != result["bundle_sha256"]:
        what = f"the result is of the bundle {result['bundle_sha256'][:12]}, and here is {bundle.sha256[:12]}"
        raise InputError(what, value=where, fix=AGAIN)
    if bundle is not None:
        result["bundle_uri"] = bundle.uri
    if sealed is None:
        if bundle is None or result["steps"] != config.total_steps:
            what = f"the result, of an earlier version, is not of this run: {result['steps']} steps"
            raise InputError(what if bundle else "the result is of a bundle that is not here", value=where, fix=AGAIN)
        write_result(store, RESULT, result, fingerprint)
    if store.exists(PENDING):
        record_result(config, store, result["tracking_run"], {})
    return result


def _finish(settings: WorkerSettings, store: Store, snapshot: dict[str, Any], lease: Lease) -> dict[str, Any]:
    config = settings.config
    step = checkpoint.newest(store)
    if step < config.total_steps:
        raise LookalikeError("training ended early", value=f"step {step}", fix="see the log above")
    bundle = finished_bundle(store)
    if bundle is None:  # killed between the last checkpoint and the export, which is the first rank's work
        from lookalike.training.export import export_bundle

        bundle = export_bundle(config, store, step, lease.check)
    result = {
        "bundle_uri": bundle.uri,
        "bundle_sha256": bundle.sha256,
        "steps": step,
        "stages": _stage_losses(store),
        "tracking_run": settings.tracking_run,
        "dataset": snapshot,
    }
    tags = {"bundle_uri": bundle.uri, "bundle_sha256": bundle.sha256}
    lease.check()
    record_result(config, store, settings.tracking_run, tags)
    write_result(store, RESULT, result, settings.fingerprint)
    return result


def _stage_losses(store: Store) -> list[dict[str, Any]]:
    """For each stage the mean loss of its first and of its last tenth, and the last held-out figures."""
    from lookalike.training.history import METRICS

    stages: dict[str, dict[str, Any]] = {}
    for record in read_lines(store, METRICS, "stage"):
        stage = stages.setdefault(record["stage"], {"losses": [], "validation": None})
        if "validation" in record:
            stage["validation"] = record["validation"]
        else:
            stage["losses"].append(record["loss"])
    return [
        {
            "stage": name,
            "loss_first": sum(stage["losses"][: (tenth := max(1, len(stage["losses"]) // 10))]) / tenth,
            "loss_last": sum(stage["losses"][-tenth:]) / tenth,
            "validation": stage["validation"],
        }
        for name, stage in stages.items()
    ]
