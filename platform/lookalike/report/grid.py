"""Labelled grids of images: references | prompt | real photo | generated images, one row per prompt.

Images are uint8 RGB ``[H, W, 3]`` of any size; they are fitted into their cell and never stretched.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 168  # pixels a side: a 64-pixel image is shown at 2.6 times its size
GAP = 12
_MOST_CHARACTERS = 600  # of a text: more does not fit into a cell, and Pillow takes long to measure a million
TEXT_WIDTH = 200
INK, QUIET, LINE = "#1c1e21", "#6a6f76", "#e3e5e8"


@dataclass(frozen=True)
class GridRow:
    """One prompt with its references and its images."""

    references: Sequence[np.ndarray]
    """Photos of the subject that the model read."""
    prompt: str
    """Text that the model read."""
    images: Mapping[str, np.ndarray]
    """Column title → image; a cell without an image stays empty."""
    note: str = ""
    """Small print below the prompt."""


def draw_grid(rows: Sequence[GridRow], columns: Sequence[str], title: str = "") -> Image.Image:
    """Draw ``rows`` below the column titles: references in one cell, then the prompt, then ``columns``."""
    titles = ["references", "prompt", *columns]
    widths = [CELL, TEXT_WIDTH, *[CELL] * len(columns)]
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    title_lines = max(len(_wrap(name, width, 14, bold=True)) for name, width in zip(titles, widths, strict=True))
    head = GAP + (30 if title else 0) + title_lines * 18 + 8
    canvas = Image.new("RGB", (lefts[-1] + widths[-1] + GAP, head + len(rows) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((GAP, GAP), title, fill=INK, font=_font(17, bold=True))
    for name, left, width in zip(titles, lefts, widths, strict=True):
        lines = _wrap(name, width, 14, bold=True)
        for offset, line in enumerate(lines):
            draw.text((left, head - 8 - 18 * (len(lines) - offset)), line, fill=INK, font=_font(14, bold=True))
    for index, row in enumerate(rows):
        top = head + index * (CELL + GAP)
        draw.line([(GAP, top - GAP // 2), (canvas.width - GAP, top - GAP // 2)], fill=LINE)
        _paste_stack(canvas, row.references, lefts[0], top)
        y = top + 2
        for text, colour, size in ((row.prompt, INK, 15), (row.note, QUIET, 12)):
            for line in _wrap(text, TEXT_WIDTH, size):
                if y + size <= top + CELL:
                    draw.text((lefts[1], y), line, fill=colour, font=_font(size))
                y += size + 5
            y += 4
        for name, left in zip(columns, lefts[2:], strict=True):
            if name in row.images:
                _paste(canvas, row.images[name], left, top, CELL)
    return canvas


def encode_grid(grid: Image.Image) -> bytes:
    """Encode a grid as a PNG of the smallest size."""
    buffer = io.BytesIO()
    grid.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _paste_stack(canvas: Image.Image, images: Sequence[np.ndarray], left: int, top: int) -> None:
    """Paste up to four images into one cell: a single one fills it, two are side by side, more in two rows."""
    shown = images[:4]
    if len(shown) == 1:
        _paste(canvas, shown[0], left, top, CELL)
        return
    side = (CELL - 4) // 2
    for index, image in enumerate(shown):
        _paste(canvas, image, left + (index % 2) * (side + 4), top + (index // 2) * (side + 4), side)


def _paste(canvas: Image.Image, image: np.ndarray, left: int, top: int, side: int) -> None:
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    fitted = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    canvas.paste(fitted, (left + (side - size[0]) // 2, top + (side - size[1]) // 2))


def _wrap(text: str, width: int, size: int, bold: bool = False) -> list[str]:
    """Break ``text`` at spaces to ``width`` pixels; a word that is too long is cut with an ellipsis."""
    font = _font(size, bold)
    lines: list[str] = []
    for word in text[:_MOST_CHARACTERS].split():
        while font.getlength(word) > width:
            word = word.rstrip("…")[:-1] + "…"
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans as matplotlib ships it: the same letters on every machine, Greek and Cyrillic included."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
