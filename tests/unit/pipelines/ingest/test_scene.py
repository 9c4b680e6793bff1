"""Rendering is deterministic, with a true mask and the subject's colours."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.ingest.sample import shapes, world
from pipelines.ingest.sample.meshes import Mesh, box, read_obj, sphere, write_obj
from pipelines.ingest.sample.patterns import SolidPattern
from pipelines.ingest.sample.places import TILE, tile
from pipelines.ingest.sample.scene import Body, render
from pipelines.ingest.sample.vocabulary import COLOURS, PATTERNS, PLACES


def test_rendering_is_deterministic() -> None:
    first, other = world.photo(world.subject(0, 0), 0, 6), world.photo(world.subject(0, 1), 0, 6)
    once, mask = render(world.body(first.subject), first.view, first.place, 64)
    render(world.body(other.subject), other.view, other.place, 64)
    again, _ = render(world.body(first.subject), first.view, first.place, 64)
    assert once.shape == (64, 64, 3)
    assert mask.shape == (64, 64)
    assert np.array_equal(once, again)


@pytest.mark.parametrize("place", list(PLACES))
def test_mask_covers_the_subject(place: str) -> None:
    red = Body(sphere().seated(), SolidPattern("plain", sphere(), np.random.default_rng(0)), ("red", "blue"))
    view = world.photo(world.subject(0, 0), 0, 6).view
    photo, mask = render(red, view, place, 64)
    inside, outside = photo[mask == 255].astype(int), photo[mask == 0].astype(int)
    assert 1 / 32 < (mask > 127).mean() < 0.6
    assert ((inside[:, 0] > 2 * inside[:, 1]) & (inside[:, 0] > 2 * inside[:, 2])).mean() > 0.99
    assert not np.allclose(outside.mean(0), inside.mean(0), atol=30)


@pytest.mark.parametrize("shape", shapes.names())
def test_every_shape_is_a_solid_of_normal_size(shape: str) -> None:
    mesh = shapes.build(shape, np.random.default_rng(5))
    extents = mesh.vertices.max(0) - mesh.vertices.min(0)
    assert np.isfinite(mesh.vertices).all()
    assert mesh.faces.max() < len(mesh.vertices)
    assert mesh.vertices[:, 2].min() == pytest.approx(0)
    assert extents.max() <= 1.3 + 1e-6
    assert np.prod(extents) ** (1 / 3) <= 0.7 + 1e-6


def test_every_sculpture_has_a_mesh() -> None:
    class Draw:
        def __init__(self, number: int) -> None:
            self.number = number

        def integers(self, end: int) -> int:
            return self.number

    for number in range(160, 180):
        assert np.isfinite(shapes.SHAPES["sculpture"](Draw(number)).vertices).all(), number  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "plain"])
def test_pattern_shows_both_colours_from_every_side(pattern: str) -> None:
    mesh = sphere().seated()
    points = mesh.vertices.astype(np.float32)
    for seed in range(5):
        second = SolidPattern(pattern, mesh, np.random.default_rng(seed)).second_colour(points)
        assert 0.1 < second.mean() < 0.9, seed


def test_tiles_are_periodic_and_different() -> None:
    means = np.array([tile(kind).mean((0, 1)) for kind in PLACES])
    assert all(tile(kind).shape == (TILE, TILE, 3) for kind in PLACES)
    distance = np.linalg.norm(means[:, None] - means[None], axis=-1) + 1e3 * np.eye(len(means))
    assert distance.min() > 8


def test_colours_are_distinguishable() -> None:
    values = np.array(list(COLOURS.values()), float)
    distance = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e3 * np.eye(len(values))
    assert distance.min() > 60


def test_mesh_is_written_and_read_back(tmp_path: Path) -> None:
    mesh = box(1, 2, 3)
    write_obj(mesh, tmp_path / "box.obj")
    again = read_obj(tmp_path / "box.obj")
    assert np.allclose(again.vertices, mesh.vertices)
    assert np.array_equal(again.faces, mesh.faces)


def test_faces_of_a_sweep_point_outward() -> None:
    def volume(mesh: Mesh) -> float:
        a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
        return float((a * np.cross(b, c)).sum() / 6)

    assert volume(box(1, 2, 3)) == pytest.approx(6)
    assert volume(sphere(1)) == pytest.approx(4 / 3 * np.pi, rel=0.05)
