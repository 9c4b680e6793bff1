"""The protocol that training and evaluation know, and the choice of a tracker by URI."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from lookalike.errors import StoppedError
from lookalike.tracking.address import tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_RUN = ""  # the id of what keeps nothing


class Tracker(Protocol):
    """One run. A context manager: leaving it ends the run as finished, failed or (interrupted) killed."""

    @property
    def run_id(self) -> str:
        """The id under which the run can be opened again; empty if nothing is kept."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved configuration: a parameter for each leaf (``optimizer.lr``), and the whole as JSON."""

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Record metrics at ``step``; ``time_ms`` since 1970, by default now."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a small local file below ``folder``. Weights go to a store, never here."""

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Keep a matplotlib figure as ``name`` (``loss.png``)."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


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
    from lookalike.tracking.files import JsonLinesTracker
    from lookalike.tracking.null import NullTracker

    if not enabled:
        return NullTracker()
    address = tracking_uri(uri)
    if address.startswith("none:"):
        return NullTracker()
    if address.startswith("jsonl:"):
        return JsonLinesTracker(Path(address.removeprefix("jsonl:")), experiment, run_name=run_name, run_id=run_id)
    from lookalike.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(address, experiment, run_name=run_name, run_id=run_id)


def status_of(kind: type[BaseException] | None) -> str:
    """How a run ended that was left with an exception of ``kind``."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, StoppedError) or not issubclass(kind, Exception) else "FAILED"
