"""Open a tracker by its URI."""

from pathlib import Path

from lookalike.tracking.address import tracking_uri
from lookalike.tracking.base import Tracker
from lookalike.tracking.files import JsonLinesTracker
from lookalike.tracking.null import NullTracker


def open_tracker(
    uri: str | None,
    experiment: str,
    *,
    run_name: str | None = None,
    run_id: str | None = None,
    enabled: bool = True,
) -> Tracker:
    """Start a run of ``experiment``, or continue ``run_id``. Jobs use :func:`~lookalike.tracking.open_resilient`.

    Args:
        uri: see :func:`~lookalike.tracking.address.tracking_uri`; None takes the environment's.
        experiment: made if it does not exist.
        run_name: what people see; names may repeat.
        run_id: of a run to continue; an unknown or deleted one is an InputError.
        enabled: False gives a tracker that keeps nothing (all ranks but the first).

    Raises:
        UnreachableError: the server does not answer within 30 s.
    """
    if not enabled:
        return NullTracker()
    address = tracking_uri(uri)
    if address.startswith("none:"):
        return NullTracker()
    if address.startswith("jsonl:"):
        return JsonLinesTracker(Path(address.removeprefix("jsonl:")), experiment, run_name=run_name, run_id=run_id)
    from lookalike.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(address, experiment, run_name=run_name, run_id=run_id)
