"""The ``Tracker`` protocol, which training and evaluation use, and the tracker that records nothing."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from lookalike.errors import LookalikeError, StoppedError

log = logging.getLogger(__name__)

NO_RUN = ""  # run id of a tracker that records nothing


class Tracker(Protocol):
    """One run. A context manager: its exit ends the run as FINISHED, FAILED (an error) or KILLED (stopped)."""

    run_id: str
    """The id by which the run can be opened again; empty if nothing is recorded."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record the resolved configuration: a parameter for each leaf (``optimizer.lr``), and the whole as JSON."""

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Record metrics at ``step``; ``time_ms`` since 1970, by default now."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a small local file below ``folder``. Weights go to a store instead."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED"
        if kind is not None:
            status = "KILLED" if issubclass(kind, StoppedError) or not issubclass(kind, Exception) else "FAILED"
        try:
            self.finish(status)
        except LookalikeError as problem:
            if error is None:
                raise
            log.warning("the run could not be marked as ended: %s", problem)  # and the first error is raised


class NullTracker(Tracker):
    """A tracker that ignores every call, for ranks other than the first and for ``none:``."""

    run_id = NO_RUN

    def _ignore(self, *args: Any, **options: Any) -> None:
        """Record nothing."""

    log_config = log_metrics = log_artifact = set_tags = finish = _ignore
