"""Metrics for Prometheus are shown if Ray takes them, and never end a run."""

import pytest

from pipelines.train.observe import RayMetrics


def test_metrics_for_prometheus_never_end_a_run(
    ray_local: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown = RayMetrics("file:///größe/файл 1?x=http://mia:secret1@h")
    shown(1, {"loss": 0.5, "größe %": 1.0, "step_seconds": 1.0, "images_per_second": 2.0})
    assert not caplog.records
    monkeypatch.setattr(shown, "_metric", lambda *metric: 1 / 0)
    for step in range(3):
        shown(step, {"loss": 0.5})
    assert caplog.text.count("not shown to Prometheus") == 1
