"""A training run from its configuration to its bundle."""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from lookalike import config as configs
from lookalike.bundles.manifest import latent_identity, read_preset
from lookalike.bundles.manifest import read_manifest as read_bundle_manifest
from lookalike.bundles.transfer import local_bundle, verified_reference
from lookalike.data.permutation import Permutation
from lookalike.errors import ConflictError, InputError
from lookalike.storage import Store, latest_version, list_versions, open_store, read_manifest, version_store
from lookalike.storage.claim import read_claim, run_once
from lookalike.storage.lease import Lease, hold
from lookalike.tracking import tracking_uri
from lookalike.training import checkpoint
from lookalike.training.config import TrainConfig
from lookalike.training.epoch_plan import ORDER, EpochPlan
from lookalike.training.run_bundles import initial_bundle
from lookalike.training.stopping import stops_on_sigterm
from pipelines.entry import ray_session
from pipelines.train.result import RESULT, earlier_result, finish
from pipelines.train.samples import TripletSource
from pipelines.train.settings import LEASE, WorkerSettings
from pipelines.train.tracked import tracking_run
from pipelines.train.worker_group import fit

log = logging.getLogger(__name__)

Fit = Callable[[WorkerSettings, Store, Lease], None]

_CHECKED = 1024  # rows whose number of references is checked before anything starts


def train(config: TrainConfig, fit: Fit = fit) -> dict[str, Any]:
    """Train and export; return the content of ``result.json``. The same configuration again resumes or returns at once.

    ``fit`` trains the run from its last checkpoint to its end, by default in this process or a group of Ray Train's.

    Raises:
        BusyError: another process is training this run.
        ConflictError: ``config.run`` holds a run of another configuration, of another snapshot or of another base, or
            one that began with another order of samples.
        InputError: no snapshot, no triplets, or an incomplete base.
        StoppedError: SIGTERM; the same configuration resumes from the checkpoint that was written.
        TrainingDivergedError: the loss or its gradient is not finite or too large.
    """
    started = time.perf_counter()
    dataset, store = open_store(config.dataset), open_store(config.run)
    # Workers run in other folders than this process, so that relative paths become absolute.
    config = replace(config, dataset=dataset.uri, run=store.uri, tracking=tracking_uri(config.tracking))
    version = _version(dataset, store)
    manifest = read_manifest(dataset, version)
    sha256 = configs.fingerprint(manifest)
    snapshot = {"uri": dataset.uri, "version": version, "sha256": sha256}
    content: dict[str, Any] = {"snapshot": snapshot, "order": ORDER}
    if config.base is not None:
        content["base_sha256"] = verified_reference(config.base).sha256

    def work(fingerprint: str) -> dict[str, Any]:
        _check_order(store, config)
        with hold(store.child(LEASE), above=checkpoint.latest_lease(store)) as lease:
            initial = initial_bundle(config, store)
            latents = _latents_fit(manifest.get("latents"), initial.uri)
            uri = version_store(dataset, version).uri
            source = TripletSource(uri, "train", initial.uri, latents, sha256, initial.sha256)
            references_fit(source)
            settings = WorkerSettings(
                config=config,
                source=source,
                plan=EpochPlan(len(source.table()), config.batch_size, config.seed),
                fingerprint=fingerprint,
                base_sha256=initial.sha256,
                **tracking_run(config, store, snapshot),
                terminal=sys.stderr.isatty(),
                lease=lease.number,
            )
            log.info("ready for its ranks in %.1f s", time.perf_counter() - started)
            needs_ray = config.workers.num_workers > 0 or not config.keep_samples
            with ray_session() if needs_ray else nullcontext(), stops_on_sigterm(store, config.safety.grace_s):
                fit(settings, store, lease)
            return finish(settings, store, snapshot, lease)

    def earlier(fingerprint: str) -> dict[str, Any]:
        return earlier_result(config, store, fingerprint)

    return run_once(store, RESULT, config, content=content, earlier=earlier, work=work)


def _latents_fit(encoded: dict[str, Any] | None, bundle_uri: str) -> bool:
    """Return whether the snapshot's latents equal those of the bundle's VAE."""
    if encoded is None:
        return False
    fit: bool = encoded == latent_identity(read_bundle_manifest(local_bundle(bundle_uri)))
    if not fit:
        log.warning("the snapshot's latents belong to another VAE or size; the VAE encodes images during training")
    return fit


def references_fit(source: TripletSource) -> None:
    """Raise InputError if a triplet has more references than the bundle's preset takes, before anything starts.

    Of a large split it looks at rows that are spread over it; a triplet among the others is left out by its step, with
    this reason.
    """
    table = source.table()
    rows = table.take(Permutation(len(table), (0,))(np.arange(min(_CHECKED, len(table)))))
    preset = read_preset(local_bundle(source.bundle_uri))
    most = preset.references.max_references
    found = int(pc.max(pc.list_value_length(rows["reference_offsets"])).as_py() or 0)
    if found > most:
        what = f"triplets have up to {found} references, the preset {preset.name} takes {most}"
        raise InputError(what, value=source.snapshot_uri, fix=f"curate with plan.max_references={most}")


def _check_order(run: Store, config: TrainConfig) -> None:
    """Raise ConflictError for a run of earlier software with steps to do; it recorded no order of samples."""
    if "order" not in (read_claim(run) or {}).get("identity", {}) and checkpoint.newest(run) < config.total_steps:
        raise ConflictError(
            "the run began with an earlier version of lookalike, whose epochs have another order of samples",
            value=run.uri,
            fix="finish it with that version, or give another --run to start again",
        )


def _version(dataset: Store, run: Store) -> int:
    """Return the snapshot that the run began with if the data set still has it, otherwise the newest."""
    recorded = (read_claim(run) or {}).get("identity", {}).get("snapshot")
    newest = latest_version(dataset)
    if not isinstance(recorded, dict) or recorded.get("version") not in list_versions(dataset):
        return newest
    version = int(recorded["version"])
    same = configs.fingerprint(read_manifest(dataset, version)) == recorded.get("sha256")
    if same and version != newest:
        log.info("the run continues with snapshot %d, with which it began; the newest is %d", version, newest)
    return version if same else newest
