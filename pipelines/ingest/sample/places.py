"""Grounds and walls of the sample world: periodic albedo tiles, made once per process."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.ingest.sample.vocabulary import PLACES

TILE = 512  # pixels per side
TILE_SIZE = 2.5  # world units per side; a subject has about 1 unit
WALLS = {"bricks", "blue_wall", "night"}  # places whose tile is a wall behind the subject

Tile = npt.NDArray[np.float32]  # [TILE, TILE, 3] in 0…255, periodic in both directions


@cache
def tile(kind: str) -> Tile:
    """Return the albedo tile of a kind of place, which is the same in every process."""
    rng = np.random.default_rng([71, list(PLACES).index(kind)])
    return np.asarray(np.clip(_PAINTERS[kind](rng), 0, 255), np.float32)


@cache
def mean_colour(kind: str) -> npt.NDArray[np.float32]:
    """Return the mean colour of a tile: [3] in 0…255."""
    return np.asarray(tile(kind).mean((0, 1)))


def _noise(rng: np.random.Generator, slope: float, stretch: float = 1.0) -> npt.NDArray[np.float64]:
    """Periodic noise with spectrum f^-slope, mean 0 and deviation 1; ``stretch`` scales frequencies along x."""
    f = np.fft.fftfreq(TILE) * TILE
    radius = np.hypot(f[None, :] * stretch, f[:, None])
    radius[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(TILE, TILE))) * radius**-slope
    field = np.real(np.fft.ifft2(spectrum))
    return np.asarray((field - field.mean()) / field.std())


def _paint(base: tuple[float, float, float], *layers: tuple[npt.NDArray[Any], tuple[float, float, float]]) -> Tile:
    pixels = np.broadcast_to(np.array(base, float), (TILE, TILE, 3)).copy()
    for field, colour in layers:
        pixels += field[..., None] * np.array(colour, float)
    return pixels.astype(np.float32)


def _cells(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Periodic Voronoi cells: distance between the nearest two seeds [TILE, TILE], and the cell's number."""
    from scipy.spatial import cKDTree

    side = round(count**0.5)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    seeds = (grid + 0.5 + rng.uniform(-0.36, 0.36, grid.shape)) * (TILE / side)
    pixels = np.stack(np.meshgrid(np.arange(TILE), np.arange(TILE)), -1) + 0.5
    distance, number = cKDTree(seeds, boxsize=TILE).query(pixels, k=2)
    return distance[..., 1] - distance[..., 0], number[..., 0]


def _grass(rng: np.random.Generator) -> Tile:
    blades, patches = _noise(rng, 0.7, stretch=0.35), _noise(rng, 1.8)
    return _paint((72, 132, 48), (blades, (20, 26, 14)), (patches, (10, 9, 4)))


def _sand(rng: np.random.Generator) -> Tile:
    ripple = np.sin(np.arange(TILE)[:, None] * 2 * np.pi * 14 / TILE + 1.4 * _noise(rng, 1.9))
    return _paint((222, 192, 138), (ripple, (9, 9, 8)), (_noise(rng, 0.2), (8, 8, 7)))


def _wood(rng: np.random.Generator) -> Tile:
    planks = 8
    row = np.arange(TILE) * planks // TILE
    shade = rng.uniform(-1, 1, planks)[row][:, None] + np.zeros((TILE, TILE))
    groove = ((np.arange(TILE) * planks / TILE) % 1 < 0.06)[:, None] * 1.0 + np.zeros((TILE, TILE))
    return _paint(
        (166, 112, 62), (shade, (20, 15, 10)), (_noise(rng, 1.1, stretch=0.08), (13, 10, 7)), (groove, (-70, -55, -35))
    )


def _water(rng: np.random.Generator) -> Tile:
    wave = _noise(rng, 1.7, stretch=0.5)
    return _paint((34, 118, 176), (wave, (12, 16, 18)), ((wave > 1.3) * 1.0, (60, 56, 46)))


def _cobblestone(rng: np.random.Generator) -> Tile:
    edge, number = _cells(rng, 144)
    shade = rng.uniform(-1, 1, 400)[number]
    gap = (edge < 7) * 1.0
    return _paint((134, 132, 128), (shade, (26, 25, 24)), (_noise(rng, 0.8), (8, 8, 8)), (gap, (-70, -70, -68)))


def _leaves(rng: np.random.Generator) -> Tile:
    edge, number = _cells(rng, 324)
    palette = np.array([(204, 92, 28), (226, 150, 40), (160, 58, 26), (184, 122, 44), (120, 70, 30)], np.float32)
    pixels = palette[rng.integers(0, len(palette), 400)[number]]
    return np.asarray(pixels + (np.minimum(edge, 10) - 7)[..., None] * 5 + _noise(rng, 0.9)[..., None] * 8, np.float32)


def _tiles(rng: np.random.Generator) -> Tile:
    cell = np.arange(TILE) * 6 // TILE
    dark = ((cell[:, None] + cell[None]) % 2) * 1.0
    seam = ((np.arange(TILE) * 6 / TILE) % 1 < 0.03) * 1.0
    seams = np.maximum(seam[:, None], seam[None])
    return _paint((226, 224, 216), (dark, (-112, -100, -84)), (seams, (-40, -40, -40)), (_noise(rng, 1.5), (4, 4, 4)))


def _bricks(rng: np.random.Generator) -> Tile:
    rows, columns = 14, 6
    y, x = np.mgrid[:TILE, :TILE] / TILE
    row = np.floor(y * rows)
    along = x * columns + 0.5 * (row % 2)
    number = (row * columns + np.floor(along) % columns).astype(int)
    mortar = (((y * rows) % 1 < 0.13) | (along % 1 < 0.06)) * 1.0
    shade = rng.uniform(-1, 1, rows * columns)[number]
    return _paint((158, 72, 54), (shade, (22, 14, 12)), (_noise(rng, 0.7), (9, 7, 6)), (mortar, (34, 96, 106)))


def _night(rng: np.random.Generator) -> Tile:
    pixels = _paint((16, 20, 52), (_noise(rng, 1.9), (7, 6, 14)))
    for x, y, glow in zip(*rng.integers(4, TILE - 4, (2, 170)), rng.uniform(120, 240, 170), strict=True):
        pixels[y : y + 3, x : x + 3] += glow
    return pixels


_PAINTERS = {
    "grass": _grass,
    "sand": _sand,
    "snow": lambda rng: _paint((232, 238, 246), (_noise(rng, 1.9), (9, 7, 3)), (_noise(rng, 0.5), (4, 4, 4))),
    "wood": _wood,
    "water": _water,
    "cobblestone": _cobblestone,
    "leaves": _leaves,
    "carpet": lambda rng: _paint((236, 150, 188), (_noise(rng, 0.1), (10, 10, 10)), (_noise(rng, 1.6), (7, 7, 7))),
    "tiles": _tiles,
    "bricks": _bricks,
    "blue_wall": lambda rng: _paint((92, 142, 214), (_noise(rng, 1.8), (6, 6, 6)), (_noise(rng, 0.2), (4, 4, 4))),
    "night": _night,
}
