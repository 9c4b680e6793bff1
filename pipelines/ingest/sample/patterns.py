"""Solid textures: which of a subject's two colours a point on its surface has.

They are functions of the position in the subject's own coordinates, so that all views show the same subject.
"""

import numpy as np
import numpy.typing as npt

from pipelines.ingest.sample.meshes import Mesh

Points = npt.NDArray[np.float32]  # [..., 3], in units of the subject's size


class SolidPattern:
    """The pattern of one subject, with a random scale, direction and spots from ``rng``."""

    def __init__(self, pattern: str, mesh: Mesh, rng: np.random.Generator) -> None:
        self.pattern = pattern
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        self._middle = ((low + high) / 2).astype(np.float32)
        self._axis = np.array([0, 0, 1] if rng.random() < 0.6 else [1, 0, 0], np.float32)
        self._frequency = float(rng.uniform(3.2, 5.2))
        self._phase = rng.uniform(0.2, 0.8, 3).astype(np.float32)
        self._waves = rng.normal(0, 5, (4, 3)).astype(np.float32)
        self._offsets = rng.uniform(0, 2 * np.pi, 4).astype(np.float32)
        self._radius = float(rng.uniform(0.06, 0.1))
        surface = _surface_points(mesh, rng)
        self._spots = _apart(surface, 2.9 * self._radius) if pattern == "spotted" else None
        self._level = float(np.median(self._wave(surface.astype(np.float32) - self._middle)))

    def second_colour(self, points: Points) -> npt.NDArray[np.bool_]:
        """Return which points have the second colour: bool [...] for float32 [..., 3]."""
        centred = points - self._middle
        if self.pattern == "striped":
            return np.asarray((centred @ self._axis * self._frequency + self._phase[0]) % 1 < 0.5)
        if self.pattern == "checked":
            cells = np.floor(centred * self._frequency + self._phase).astype(np.int64)
            return np.asarray(cells.sum(-1) % 2 == 0)
        if self.pattern == "split":
            return np.asarray(centred @ self._axis > 0)
        if self.pattern == "patched":
            return np.asarray(self._wave(centred) > self._level)
        if self.pattern == "spotted" and self._spots is not None:
            from scipy.spatial import cKDTree

            distance, _ = cKDTree(self._spots).query(points, distance_upper_bound=self._radius)
            return np.asarray(np.isfinite(distance))
        return np.zeros(points.shape[:-1], bool)

    def _wave(self, centred: Points) -> npt.NDArray[np.float32]:
        return np.asarray(np.sin(centred @ self._waves.T + self._offsets).sum(-1))


def _surface_points(mesh: Mesh, rng: np.random.Generator, count: int = 900) -> npt.NDArray[np.float64]:
    """Sample points uniformly on the surface: [count, 3]."""
    corners = mesh.vertices[mesh.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    face = rng.choice(len(corners), count, p=area / area.sum())
    weight = rng.dirichlet((1, 1, 1), count)
    return np.asarray((corners[face] * weight[..., None]).sum(1))


def _apart(candidates: npt.NDArray[np.float64], gap: float) -> npt.NDArray[np.float64]:
    """A subset of the candidates with distances larger than ``gap``: [S, 3]."""
    free = np.ones(len(candidates), bool)
    chosen = []
    for i, point in enumerate(candidates):
        if free[i]:
            chosen.append(point)
            free &= np.linalg.norm(candidates - point, axis=1) > gap
    return np.array(chosen)
