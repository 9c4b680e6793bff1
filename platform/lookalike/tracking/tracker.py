"""Open a tracker by its URI."""

from pathlib import Path

from lookalike.tracking.address import tracking_uri
from lookalike.tracking.base import Tracker
from lookalike.tracking.files import JsonLinesTracker
from lookalike.tracking.null import NullTracker


def open_tracker(
    uri: str | None, experiment: str, *, run_name: str | None = None, run_id: str | None = None, enabled: bool = True
) -> Tracker:
    """Start a run of ``experiment``, or continue ``run_id``. Jobs use
    :func:`~lookalike.tracking.resilient.open_resilient` instead.

    Args:
        uri: see :func:`~lookalike.tracking.address.tracking_uri`; None uses MLFLOW_TRACKING_URI.
        experiment: name of the experiment, which is created if it does not exist.
        run_name: display name of the run; need not be unique.
        run_id: id of a run to continue.
        enabled: False returns a tracker that records nothing (for all ranks but the first).

    Raises:
        ConfigError: the URI is missing or invalid.
        InputError: the run to continue does not exist, was deleted, or belongs to another experiment.
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
