"""Plots of means with intervals."""

import io

from PIL import Image

from lookalike.report.intervals import Panel, draw_panels

PANEL = Panel("identity", ["a", "b"], {"probe": [(0.5, 0.4, 0.6), (0.7, 0.6, 0.75)]}, levels={"real photos": 0.8})


def test_panels_are_a_png_with_equal_bytes_for_equal_input() -> None:
    data = draw_panels([[PANEL, PANEL], [PANEL]], "two rows")
    assert data == draw_panels([[PANEL, PANEL], [PANEL]], "two rows")
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.width > image.height


def test_another_mean_changes_the_plot() -> None:
    higher = Panel(PANEL.title, PANEL.settings, {"probe": [(0.5, 0.4, 0.6), (0.72, 0.6, 0.75)]}, levels=PANEL.levels)
    assert draw_panels([[PANEL]]) != draw_panels([[higher]])
