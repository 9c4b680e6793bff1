"""A tracker that records nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike.tracking.base import RunBlock

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NullTracker(RunBlock):
    """A tracker that ignores every call, for ranks other than the first and for ``none:``."""

    run_id = ""

    def log_config(self, config: Mapping[str, Any]) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        pass

    def log_artifact(self, path: Path, folder: str = "") -> None:
        pass

    def log_figure(self, figure: "Figure", name: str) -> None:
        pass

    def set_tags(self, tags: Mapping[str, str]) -> None:
        pass

    def finish(self, status: str = "FINISHED") -> None:
        pass
