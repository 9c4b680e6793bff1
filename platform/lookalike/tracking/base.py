"""The ``Tracker`` protocol, which training and evaluation use."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from lookalike.errors import StoppedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_RUN = ""  # run id of a tracker that records nothing


class Tracker(Protocol):
    """One run. A context manager: its exit ends the run as FINISHED, FAILED (an error) or KILLED (stopped)."""

    @property
    def run_id(self) -> str:
        """The id by which the run can be opened again; empty if nothing is recorded."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved configuration: a parameter for each leaf (``optimizer.lr``), and the whole as JSON."""

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Record metrics at ``step``; ``time_ms`` since 1970, by default now."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a small local file below ``folder``. Weights go to a store instead."""

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Record a matplotlib figure as ``name`` (``loss.png``)."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def status_of(kind: type[BaseException] | None) -> str:
    """Return the final status of a run whose block ended with an exception of ``kind``, or without one (None)."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, StoppedError) or not issubclass(kind, Exception) else "FAILED"


class RunBlock:
    """The ``with`` block of a tracker, whose end ends the run."""

    def finish(self, status: str = "FINISHED") -> None:
        """End the run."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(status_of(kind))
