import numpy as np
import pytest
from PIL import ImageFont

from lookalike.report import grid
from lookalike.report.grid import CELL, GAP, TEXT_WIDTH, GridRow, draw_grid


def _flat(colour: tuple[int, int, int], height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_images_stand_in_their_columns_and_absent_ones_stay_empty() -> None:
    red, green, blue = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    rows = [
        GridRow([_flat(red)], "first", {"one": _flat(green)}),
        GridRow([_flat(red)] * 2, "second", {"one": _flat(green), "two": _flat(blue)}),
    ]
    image = np.asarray(draw_grid(rows, ["one", "two"]))
    one = GAP + CELL + GAP + TEXT_WIDTH + GAP
    two = one + CELL + GAP
    middles = [image.shape[0] - CELL // 2 - GAP - (CELL + GAP), image.shape[0] - CELL // 2 - GAP]
    assert tuple(image[middles[0], one + CELL // 2]) == green
    assert tuple(image[middles[0], two + CELL // 2]) == (255, 255, 255)
    assert tuple(image[middles[1], two + CELL // 2]) == blue
    assert tuple(image[middles[0], GAP + CELL // 2]) == red


def test_an_image_is_never_stretched() -> None:
    image = np.asarray(draw_grid([GridRow([], "wide", {"one": _flat((200, 0, 0), 32, 64)})], ["one"]))
    reds = np.argwhere((image == (200, 0, 0)).all(axis=-1))
    height, width = reds.max(axis=0) - reds.min(axis=0) + 1
    assert (height, width) == (CELL // 2, CELL)


TEXTS = ["", "word", "a few words that need more than one line of this width", "x" * 200, "a\0b", "a 🦊", "$\\frac$"]
LONG = ["x" * 2_000_000, "red mug " * 300_000]  # Pillow refuses to measure more than a million characters


@pytest.mark.parametrize("text", [*TEXTS, *LONG], ids=lambda text: text[:10])
def test_text_stays_in_its_width(text: str) -> None:
    draw_grid([GridRow([], text, {}, note=text)], ["one"], "title")
    font: ImageFont.FreeTypeFont = grid._font(15)
    assert all(font.getlength(line) <= TEXT_WIDTH for line in grid._wrap(text, TEXT_WIDTH, 15))
