"""Runs and their figures behind one small protocol; which tracker keeps them is a URI."""

from lookalike.tracking.address import tracking_uri
from lookalike.tracking.tracker import Tracker, open_tracker

__all__ = ["Tracker", "open_tracker", "tracking_uri"]
