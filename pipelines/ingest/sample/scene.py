"""Render a photo of the sample world: a subject by pybullet, composited over a place by its true mask."""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from lookalike.scratch import scratch
from pipelines.ingest.sample.meshes import Mesh, write_obj
from pipelines.ingest.sample.patterns import SolidPattern
from pipelines.ingest.sample.places import TILE, TILE_SIZE, WALLS, mean_colour, tile
from pipelines.ingest.sample.vocabulary import COLOURS

_FOV_DEG, _NEAR, _FAR = 36.0, 0.8, 6.0
_OVERSAMPLE = 2  # supersampling factor, for antialiased outlines
_AMBIENT = 0.42
_SHADOW_PX, _SHADOW_SPAN = 160, 4.0  # shadow map: pixels and world units per side

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """Camera and light of one photo."""

    azimuth_deg: float
    """Side that faces the camera: 0 is the front, 90 the subject's right."""
    elevation_deg: float
    """Elevation of the camera above the horizon."""
    distance: float
    """Distance from the camera to its aim, in world units; a subject has about 1 unit."""
    shift: tuple[float, float]
    """Offset of the camera's aim from the subject, in world units (right, up)."""
    light_deg: float
    """Direction of the light, relative to the camera."""
    exposure: float
    """Factor on the brightness of the whole photo."""
    place_turn_deg: float
    """Rotation of the ground under the subject."""


@dataclass(frozen=True)
class Body:
    """A subject to render: its mesh, its pattern and its two colours (keys of COLOURS)."""

    mesh: Mesh
    pattern: SolidPattern
    colours: tuple[str, str]


def render(body: Body, view: View, place: str, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Render ``body`` at ``place``, a key of PLACES: RGB uint8 [size, size, 3], alpha mask uint8 [size, size]."""
    camera = _Camera(view, float(body.mesh.vertices[:, 2].max()) / 2)
    colour_HWC, alpha_HW = _render_subject(body, view, camera, size)
    photo = _render_place(body.mesh, view, camera, place, size) * (1 - alpha_HW[..., None]) + colour_HWC
    return np.clip(photo * view.exposure, 0, 255).astype(np.uint8), (alpha_HW * 255).astype(np.uint8)


class _Camera:
    """Position, axes and rays of a view of a subject whose centre is ``height`` above the ground."""

    def __init__(self, view: View, height: float) -> None:
        azimuth, elevation = np.radians([view.azimuth_deg, view.elevation_deg])
        # the front of a subject faces -y, so the camera is at -y for azimuth 0
        back = np.array([-np.sin(azimuth), -np.cos(azimuth), 0]) * np.cos(elevation) + [0, 0, np.sin(elevation)]
        self.right = np.array([np.cos(azimuth), -np.sin(azimuth), 0])
        self.up = np.cross(back, self.right)
        self.forward = -back
        self.aim = np.array([0, 0, height]) + self.right * view.shift[0] + self.up * view.shift[1]
        self.position = self.aim + back * view.distance
        light = np.radians(view.azimuth_deg + view.light_deg)
        self.light = np.array([-np.sin(light), -np.cos(light), 1.5])

    def rays(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], size: int) -> Floats:
        """Directions [..., 3] through pixels of a ``size`` x ``size`` image; the component along ``forward`` is 1."""
        span = (np.tan(np.radians(_FOV_DEG) / 2) * (2 * (np.arange(size) + 0.5) / size - 1)).astype(np.float32)
        axes = np.stack([self.right, self.up, self.forward]).astype(np.float32)
        return np.asarray(span[columns][..., None] * axes[0] - span[rows][..., None] * axes[1] + axes[2])


@cache
def _connect() -> int:
    """Connect this process to pybullet, without a window; returns the id of the connection."""
    import pybullet

    return int(pybullet.connect(pybullet.DIRECT))


@lru_cache(maxsize=1)
def _load(mesh: Mesh) -> int:
    """Replace the scene with ``mesh``, in white, unless it is loaded; returns the id of the connection."""
    import pybullet

    client = _connect()
    pybullet.resetSimulation(physicsClientId=client)
    with scratch("mesh") as folder:
        path = folder / "subject.obj"
        write_obj(mesh, path)
        visual = pybullet.createVisualShape(
            pybullet.GEOM_MESH, fileName=str(path), rgbaColor=[1, 1, 1, 1], physicsClientId=client
        )
        pybullet.createMultiBody(baseVisualShapeIndex=visual, physicsClientId=client)
    return client


def _render_subject(body: Body, view: View, camera: _Camera, size: int) -> tuple[Floats, Floats]:
    """Premultiplied colour [size, size, 3] in 0…255 and coverage [size, size] in 0…1."""
    import pybullet

    big = size * _OVERSAMPLE
    _, _, rgba, depth, segment = pybullet.getCameraImage(
        big,
        big,
        pybullet.computeViewMatrix(camera.position.tolist(), camera.aim.tolist(), [0, 0, 1]),
        pybullet.computeProjectionMatrixFOV(_FOV_DEG, 1, _NEAR, _FAR),
        lightDirection=camera.light.tolist(),
        lightAmbientCoeff=_AMBIENT,
        lightDiffuseCoeff=1 - _AMBIENT,
        lightSpecularCoeff=0,
        shadow=0,
        renderer=pybullet.ER_TINY_RENDERER,
        physicsClientId=_load(body.mesh),
    )
    rows, columns = np.nonzero(np.asarray(segment).reshape(big, big) >= 0)
    shade = np.asarray(rgba).reshape(big, big, 4)[rows, columns, 0].astype(np.float32) / 255
    depth_buffer = np.asarray(depth).reshape(big, big)[rows, columns]
    distance = _FAR * _NEAR / (_FAR - (_FAR - _NEAR) * depth_buffer)  # along ``forward``
    points = camera.position.astype(np.float32) + camera.rays(rows, columns, big) * distance[:, None]
    palette = np.array([COLOURS[name] for name in body.colours], np.float32)
    albedo = palette[body.pattern.second_colour(points).astype(np.int64)]
    layer = np.zeros((big, big, 4), np.float32)
    layer[rows, columns, :3] = albedo * (0.18 + 0.95 * shade)[:, None]
    layer[rows, columns, 3] = 1
    small = np.zeros((size, size, 4), np.float32)
    for y, x in np.ndindex(_OVERSAMPLE, _OVERSAMPLE):
        small += layer[y::_OVERSAMPLE, x::_OVERSAMPLE]
    small /= _OVERSAMPLE**2
    return small[..., :3], small[..., 3]


def _render_place(mesh: Mesh, view: View, camera: _Camera, place: str, size: int) -> Floats:
    """The empty place with the subject's shadow: float32 [size, size, 3] in 0…255."""
    rows, columns = np.mgrid[:size, :size]
    rays = camera.rays(rows, columns, size)
    floor_t = np.where(rays[..., 2] < -1e-3, -camera.position[2] / np.minimum(rays[..., 2], -1e-3), np.inf)
    ahead = np.array([camera.forward[0], camera.forward[1], 0])
    ahead /= np.linalg.norm(ahead)
    along = rays @ ahead.astype(np.float32)
    wall_distance = 1.15 if place in WALLS else 9.0
    wall_t = np.where(along > 1e-3, (wall_distance - camera.position @ ahead) / np.maximum(along, 1e-3), np.inf)
    on_floor = floor_t <= wall_t
    t = np.where(on_floor, floor_t, wall_t).astype(np.float32)
    points = camera.position.astype(np.float32) + rays * t[..., None]
    turn = np.radians(view.place_turn_deg)
    u = points[..., 0] * np.cos(turn) + points[..., 1] * np.sin(turn) + turn
    v = points[..., 1] * np.cos(turn) - points[..., 0] * np.sin(turn)
    if place in WALLS:
        wall = _sample(place, points @ camera.right.astype(np.float32) + turn, -points[..., 2], t)
        floor = mean_colour(place) * 0.62 + np.array([44, 42, 40], np.float32)
        ground = np.broadcast_to(floor, wall.shape)
    else:
        ground = _sample(place, u, v, t)
        up = np.clip(rays[..., 2:] * 1.2 + 0.5, 0, 1)
        wall = np.array([214, 226, 238], np.float32) * (1 - up) + np.array([120, 168, 224], np.float32) * up
    lit = 1 - 0.55 * _shadow(mesh, camera, points)
    haze = np.clip((t - 5) / 5, 0, 1)[..., None] * (place not in WALLS)
    ground = (ground * (1 - 0.55 * haze) + 0.55 * haze * np.array([214, 226, 238], np.float32)) * lit[..., None]
    return np.asarray(np.where(on_floor[..., None], ground, wall), np.float32)


def _sample(kind: str, u: Floats, v: Floats, t: Floats) -> Floats:
    """Look up a tile at world coordinates; far away it fades to its mean colour, which avoids aliasing."""
    pixels, scale = tile(kind), TILE / TILE_SIZE
    x, y = (u * scale).astype(np.int64) % TILE, (v * scale).astype(np.int64) % TILE
    near = np.clip(1.6 - 0.2 * t, 0.15, 1)[..., None]
    return np.asarray(pixels[y, x] * near + mean_colour(kind) * (1 - near), np.float32)


def _shadow(mesh: Mesh, camera: _Camera, points: Floats) -> Floats:
    """Share of the light that the subject blocks at points on the ground: [H, W] in 0…1."""
    flat = mesh.vertices[:, :2] - mesh.vertices[:, 2:] * (camera.light[:2] / camera.light[2])
    pixels = (flat / _SHADOW_SPAN + 0.5) * _SHADOW_PX
    image = Image.new("L", (_SHADOW_PX, _SHADOW_PX))
    draw = ImageDraw.Draw(image)
    for triangle in pixels[mesh.faces]:
        draw.polygon([(float(x), float(y)) for x, y in triangle], fill=255)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(2.2)), np.float32) / 255
    index = ((points[..., :2] / _SHADOW_SPAN + 0.5) * _SHADOW_PX).clip(0, _SHADOW_PX - 1).astype(np.int64)
    inside = np.abs(points[..., :2]).max(-1) < _SHADOW_SPAN / 2
    return np.asarray(soft[index[..., 1], index[..., 0]] * inside, np.float32)
