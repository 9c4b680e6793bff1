"""``result.json`` of a run: how it is made, and how an earlier one is read."""

from typing import Any

from lookalike.errors import InputError, LookalikeError
from lookalike.storage import Store, read_lines
from lookalike.storage.claim import AGAIN, read_result, write_result
from lookalike.storage.lease import Lease
from lookalike.tracking.events import PENDING
from lookalike.training import checkpoint
from lookalike.training.config import TrainConfig
from lookalike.training.history import METRICS
from lookalike.training.run_bundles import finished_bundle
from pipelines.train.settings import WorkerSettings
from pipelines.train.tracked import record_result

RESULT = "result.json"
_RESULT = {"bundle_uri": str, "bundle_sha256": str, "steps": int, "tracking_run": str, "stages": list}


def earlier_result(config: TrainConfig, store: Store, fingerprint: str) -> dict[str, Any]:
    """Return the content of ``result.json``, with the bundle's current URI.

    Raises InputError if the result belongs to another run, or to another bundle than the run's.
    """
    result, sealed = read_result(store, RESULT, fingerprint, _RESULT)
    bundle, where = finished_bundle(store), store.uri_of(RESULT)
    if bundle is not None:
        ours, theirs = bundle.sha256[:12], result["bundle_sha256"][:12]
        if bundle.sha256 != result["bundle_sha256"]:
            what = f"the result belongs to the bundle {theirs}, and the run has the bundle {ours}"
            raise InputError(what, value=where, fix=AGAIN)
        result["bundle_uri"] = bundle.uri
    if not sealed:
        if bundle is None:
            raise InputError("the result belongs to a bundle that is not in the run", value=where, fix=AGAIN)
        if result["steps"] != config.total_steps:
            what = f"the result, written by an earlier version, has {result['steps']} steps, not {config.total_steps}"
            raise InputError(what, value=where, fix=AGAIN)
        write_result(store, RESULT, result, fingerprint)
    if store.exists(PENDING):
        record_result(config, store, result["tracking_run"], {})
    return result


def finish(settings: WorkerSettings, store: Store, snapshot: dict[str, Any], lease: Lease) -> dict[str, Any]:
    """Export the bundle if that is still to do, record the result in the tracker and write ``result.json``."""
    config = settings.config
    step = checkpoint.newest(store)
    if step < config.total_steps:
        raise LookalikeError("training ended early", value=f"step {step}", fix="see the log above")
    bundle = finished_bundle(store)
    if bundle is None:  # killed between the last checkpoint and the first rank's export
        from lookalike.training.export import export_bundle

        bundle = export_bundle(config, store, step, lease.check)
    exported = {"bundle_uri": bundle.uri, "bundle_sha256": bundle.sha256}
    result = {
        **exported,
        "steps": step,
        "stages": _phase_losses(store),
        "tracking_run": settings.tracking_run,
        "dataset": snapshot,
    }
    lease.check()
    record_result(config, store, settings.tracking_run, exported)
    write_result(store, RESULT, result, settings.fingerprint)
    return result


def _phase_losses(store: Store) -> list[dict[str, Any]]:
    """Return for each phase the mean loss of its first and of its last tenth, and the last held-out metrics."""
    phases: dict[str, dict[str, Any]] = {}
    for record in read_lines(store, METRICS, "stage"):
        phase = phases.setdefault(record["stage"], {"losses": [], "validation": None})
        if "validation" in record:
            phase["validation"] = record["validation"]
        else:
            phase["losses"].append(record["loss"])
    return [
        {
            "stage": name,
            "loss_first": sum(phase["losses"][: (tenth := max(1, len(phase["losses"]) // 10))]) / tenth,
            "loss_last": sum(phase["losses"][-tenth:]) / tenth,
            "validation": phase["validation"],
        }
        for name, phase in phases.items()
    ]
