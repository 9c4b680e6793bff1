"""Record runs and their metrics through one small protocol; a URI selects the tracker."""

from lookalike.tracking.base import Tracker
from lookalike.tracking.resilient import open_resilient
from lookalike.tracking.tracker import open_tracker, tracking_uri

__all__ = ["Tracker", "open_resilient", "open_tracker", "tracking_uri"]
