"""Triangle meshes: the solids and sweeps of which the shapes of the sample world are built."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices float64 [V, 3] (z is up, the front faces -y) and triangles int64 [F, 3]. Compared by identity."""

    vertices: Array
    faces: npt.NDArray[np.int64]

    def moved(self, x: float = 0, y: float = 0, z: float = 0) -> "Mesh":
        """Return the mesh shifted by (x, y, z)."""
        return Mesh(self.vertices + np.array([x, y, z]), self.faces)

    def scaled(self, x: float, y: float, z: float) -> "Mesh":
        """Return the mesh scaled along each axis by a positive factor."""
        return Mesh(self.vertices * np.array([x, y, z]), self.faces)

    def turned(self, axis: int, degrees: float) -> "Mesh":
        """Return the mesh rotated about axis 0, 1 or 2 by the right-hand rule."""
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        return Mesh(self.vertices @ turn.T, self.faces)

    def seated(self, size: float = 0.7, longest: float = 1.3) -> "Mesh":
        """Return the mesh centred over the origin and standing on z = 0.

        It is scaled so that the geometric mean of its extents is ``size``, unless an extent would exceed ``longest``.
        """
        low, high = self.vertices.min(0), self.vertices.max(0)
        middle = (low + high) / 2
        middle[2] = low[2]
        extents = high - low
        scale = min(size / np.prod(extents) ** (1 / 3), longest / extents.max())
        return Mesh((self.vertices - middle) * scale, self.faces)


def merge(parts: Iterable[Mesh]) -> Mesh:
    """Merge meshes into one."""
    vertices, faces, count = [], [], 0
    for part in parts:
        vertices.append(part.vertices)
        faces.append(part.faces + count)
        count += len(part.vertices)
    return Mesh(np.concatenate(vertices), np.concatenate(faces))


def box(width: float, depth: float, height: float) -> Mesh:
    """Make an axis-aligned box that stands on z = 0."""
    w, d = width / 2, depth / 2
    return extrude([(-w, -d), (w, -d), (w, d), (-w, d)], height)


def revolve(profile: Sequence[tuple[float, float]], sides: int = 32) -> Mesh:
    """Revolve a profile of (radius, z), from bottom to top, about the z axis; open ends are closed flat."""
    points = [(0.0, profile[0][1]), *profile, (0.0, profile[-1][1])]
    angle = np.arange(sides) * 2 * np.pi / sides
    rings = [np.stack([r * np.cos(angle), r * np.sin(angle), np.full(sides, z)], 1) for r, z in points]
    return _sweep(rings, closed=False)


def tube(path: Array, radius: Array, sides: int = 14, closed: bool = False) -> Mesh:
    """Make a round tube along ``path`` [N, 3] with a radius [N] at each point."""
    tangent = np.gradient(path, axis=0)
    if closed:
        tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent, [0.13, 0.29, 0.95])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    up = np.cross(side, tangent)
    angle = (np.arange(sides) * 2 * np.pi / sides)[:, None]
    rings = [p + r * (np.cos(angle) * s + np.sin(angle) * u) for p, r, s, u in zip(path, radius, side, up, strict=True)]
    if not closed:
        rings = [np.repeat(path[:1], sides, 0), *rings, np.repeat(path[-1:], sides, 0)]
    return _sweep(rings, closed)


def sphere(radius: float = 0.5) -> Mesh:
    """Make a sphere about the origin."""
    t = np.linspace(-np.pi / 2, np.pi / 2, 15)[1:-1]
    return revolve([(radius * np.cos(a), radius * np.sin(a)) for a in t], sides=28)


def extrude(outline: Sequence[tuple[float, float]], height: float) -> Mesh:
    """Extrude an outline (counter-clockwise, star-shaped about its mean) from z = 0 to ``height``."""
    flat = np.array(outline, float)
    n = len(flat)
    middle = flat.mean(0)
    low = np.concatenate([np.c_[flat, np.zeros(n)], [[*middle, 0]]])
    vertices = np.concatenate([low, low + np.array([0, 0, height])])
    i = np.arange(n)
    j, top = (i + 1) % n, n + 1
    faces = np.concatenate(
        [
            np.c_[i, j, j + top],
            np.c_[i, j + top, i + top],
            np.c_[j, i, np.full(n, n)],
            np.c_[i + top, j + top, np.full(n, n + top)],
        ]
    )
    return Mesh(vertices, faces)


def read_obj(path: Path) -> Mesh:
    """Read vertices and faces of a Wavefront OBJ file; polygons become fans of triangles."""
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for line in path.read_text(errors="replace").splitlines():
        kind, *rest = line.split() or [""]
        if kind == "v":
            vertices.append([float(value) for value in rest[:3]])
        elif kind == "f":
            corner = [int(part.split("/")[0]) for part in rest]
            corner = [c - 1 if c > 0 else len(vertices) + c for c in corner]
            faces += [[corner[0], corner[k], corner[k + 1]] for k in range(1, len(corner) - 1)]
    return Mesh(np.array(vertices), np.array(faces, dtype=np.int64))


def write_obj(mesh: Mesh, path: Path, crease_deg: float = 48) -> None:
    """Write a Wavefront OBJ file with smooth normals, except at edges sharper than ``crease_deg``."""
    corners = mesh.vertices[mesh.faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    smooth = np.zeros_like(mesh.vertices)
    # vertices at the same position share a normal, also if the mesh repeats them
    _, place = np.unique(np.round(mesh.vertices, 5), axis=0, return_inverse=True)
    place = place.reshape(-1)
    for k in range(3):
        np.add.at(smooth, place[mesh.faces[:, k]], flat)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True) + 1e-12
    normal = smooth[place[mesh.faces]]
    hard = (normal * flat[:, None]).sum(-1) < np.cos(np.radians(crease_deg))
    normal = np.where(hard[..., None], flat[:, None], normal).reshape(-1, 3)
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in mesh.vertices]
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in normal]
    lines += [
        f"f {a + 1}//{3 * i + 1} {b + 1}//{3 * i + 2} {c + 1}//{3 * i + 3}" for i, (a, b, c) in enumerate(mesh.faces)
    ]
    path.write_text("\n".join(lines) + "\n")


def _sweep(rings: Sequence[Array], closed: bool) -> Mesh:
    n = len(rings[0])
    i = np.arange(n)
    j = (i + 1) % n
    faces = []
    for k in range(len(rings) if closed else len(rings) - 1):
        low, high = k * n, (k + 1) % len(rings) * n
        faces += [np.c_[i + low, j + low, j + high], np.c_[i + low, j + high, i + high]]
    return Mesh(np.concatenate(rings), np.concatenate(faces))
