"""Shapes of the sample world. A builder makes the mesh of one subject, with proportions from ``rng``."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.ingest.sample.meshes import Mesh, box, extrude, merge, read_obj, revolve, sphere, tube

Builder = Callable[[np.random.Generator], Mesh]
_RANDOM_OBJECTS = 1000  # pybullet_data/random_urdfs/000 … 999
_BROKEN_OBJECT = 168  # its file holds NaN only


def build(shape: str, rng: np.random.Generator) -> Mesh:
    """Build a mesh of ``shape`` that stands on z = 0 and has a size of about 1 unit."""
    mesh = SHAPES[shape](rng)
    return mesh.scaled(*rng.uniform(0.84, 1.18, 3)).seated()


def names() -> list[str]:
    """Return all shape names, sorted; each is the class name of its subjects."""
    return sorted(SHAPES)


def _file(name: str, turn: tuple[int, float] | None = None) -> Builder:
    def builder(rng: np.random.Generator) -> Mesh:
        mesh = read_obj(_assets() / name)
        return mesh.turned(*turn) if turn else mesh

    return builder


def _assets() -> Path:
    import pybullet_data

    return Path(pybullet_data.getDataPath())


def _sculpture(rng: np.random.Generator) -> Mesh:
    number = int(rng.integers(_RANDOM_OBJECTS))
    number += number == _BROKEN_OBJECT
    return read_obj(_assets() / "random_urdfs" / f"{number:03d}" / f"{number:03d}.obj")


def _star(rng: np.random.Generator) -> Mesh:
    points, depth = int(rng.integers(4, 8)), rng.uniform(0.4, 0.6)
    angle = np.arange(2 * points) * np.pi / points + np.pi / 2
    radius = np.where(np.arange(2 * points) % 2, depth, 1.0)
    return _upright([(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radius, angle, strict=True)], 0.5)


def _heart(rng: np.random.Generator) -> Mesh:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _upright([(float(a), float(b)) for a, b in zip(x[::-1] / 16, y[::-1] / 16, strict=True)], 0.7)


def _gear(rng: np.random.Generator) -> Mesh:
    teeth = int(rng.integers(7, 12))
    angle = np.arange(4 * teeth) * 2 * np.pi / (4 * teeth)
    radius = np.where(np.arange(4 * teeth) % 4 < 2, 1.0, 0.75)
    return _upright([(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radius, angle, strict=True)], 0.5)


def _cross(rng: np.random.Generator) -> Mesh:
    w = rng.uniform(0.25, 0.45)
    return merge([box(2 * w, 0.5, 2), box(2, 0.5, 2 * w).moved(z=1 - w)])


def _upright(outline: list[tuple[float, float]], thickness: float) -> Mesh:
    return extrude(outline, thickness).moved(z=-thickness / 2).turned(0, 90)


def _vase(rng: np.random.Generator) -> Mesh:
    z = np.linspace(0, 2, 16)
    belly, neck, lip = rng.uniform(0.5, 0.9), rng.uniform(0.2, 0.35), rng.uniform(0.35, 0.55)
    at = rng.uniform(0.5, 0.9)
    radius = neck + (belly - neck) * np.exp(-((z - at) ** 2) / 0.22) + (lip - neck) * np.clip(z - 1.6, 0, 1) / 0.4
    return revolve([(float(r), float(h)) for r, h in zip(radius, z, strict=True)])


def _bottle(rng: np.random.Generator) -> Mesh:
    neck, shoulder = rng.uniform(0.14, 0.24), rng.uniform(1.0, 1.5)
    return revolve([(0.5, 0), (0.52, 0.1), (0.52, shoulder), (neck, shoulder + 0.45), (neck, 2.1), (neck + 0.05, 2.2)])


def _bowl(rng: np.random.Generator) -> Mesh:
    r = rng.uniform(0.9, 1.2)
    return revolve([(0.4, 0), (0.75, 0.12), (r, 0.6), (r + 0.05, 0.75), (r - 0.05, 0.75), (0.7, 0.25), (0.3, 0.15)])


def _goblet(rng: np.random.Generator) -> Mesh:
    r, stem = rng.uniform(0.45, 0.65), rng.uniform(0.7, 1.0)
    return revolve([(0.45, 0), (0.4, 0.1), (0.1, 0.2), (0.1, stem), (r, stem + 0.3), (r * 0.9, stem + 0.9)])


def _bell(rng: np.random.Generator) -> Mesh:
    flare = rng.uniform(0.8, 1.05)
    return revolve([(flare, 0), (flare * 0.9, 0.1), (0.6, 0.5), (0.5, 1.1), (0.3, 1.4), (0.1, 1.45), (0.12, 1.7)])


def _mushroom(rng: np.random.Generator) -> Mesh:
    cap, stem = rng.uniform(0.75, 1.05), rng.uniform(0.22, 0.36)
    dome = [(float(cap * np.cos(a)), float(0.9 + 0.7 * np.sin(a))) for a in np.linspace(0, 1.45, 8)]
    return revolve([(stem * 1.25, 0), (stem, 0.4), (stem, 0.9), *dome])


def _chess_pawn(rng: np.random.Generator) -> Mesh:
    body = revolve([(0.6, 0), (0.6, 0.2), (0.35, 0.4), (0.2, 1.1), (0.4, 1.2), (0.2, 1.3)])
    return merge([body, sphere(rng.uniform(0.3, 0.42)).moved(z=1.55)])


def _spinning_top(rng: np.random.Generator) -> Mesh:
    wide = rng.uniform(0.8, 1.0)
    return revolve([(0.05, 0), (0.3, 0.3), (wide, 0.8), (wide * 0.9, 1.0), (0.15, 1.15), (0.1, 1.6)])


def _lamp(rng: np.random.Generator) -> Mesh:
    low, high = rng.uniform(0.6, 0.85), rng.uniform(0.25, 0.45)
    stand = revolve([(0.45, 0), (0.4, 0.12), (0.07, 0.2), (0.07, 1.1)])
    return merge([stand, revolve([(low, 1.0), (high, 1.8)])])


def _cone(rng: np.random.Generator) -> Mesh:
    base = box(1.7, 1.7, 0.14)
    return merge([base, revolve([(0.65, 0.14), (rng.uniform(0.08, 0.2), 1.8)])])


def _can(rng: np.random.Generator) -> Mesh:
    h = rng.uniform(1.2, 1.8)
    return revolve([(0.46, 0), (0.5, 0.06), (0.5, h), (0.46, h + 0.06)])


def _ring(rng: np.random.Generator) -> Mesh:
    a = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    thick = rng.uniform(0.2, 0.4)
    path = np.stack([np.cos(a), 0 * a, np.sin(a)], 1)
    return tube(path, np.full(36, thick), closed=True)


def _spring(rng: np.random.Generator) -> Mesh:
    turns = rng.uniform(2.5, 4)
    t = np.linspace(0, 1, 90)
    path = np.stack([0.6 * np.cos(2 * np.pi * turns * t), 0.6 * np.sin(2 * np.pi * turns * t), 2 * t], 1)
    return tube(path, np.full(90, rng.uniform(0.13, 0.2)), sides=10)


def _snake(rng: np.random.Generator) -> Mesh:
    t = np.linspace(0, 1, 60)
    path = np.stack([2 * t - 1, 0.35 * np.sin(2 * np.pi * rng.uniform(1, 1.6) * t), 0.18 + 0.5 * t**6], 1)
    return merge([tube(path, 0.06 + 0.13 * np.sqrt(t)), sphere(0.24).scaled(1.3, 1, 0.8).moved(*path[-1])])


def _cactus(rng: np.random.Generator) -> Mesh:
    def arm(side: float, height: float) -> Mesh:
        path = np.array([[0, 0, height], [side * 0.55, 0, height], [side * 0.6, 0, height + 0.1]])
        end = path[-1] + [0, 0, rng.uniform(0.4, 0.7)]
        return tube(np.vstack([path, end]), np.full(4, 0.16))

    trunk = tube(np.array([[0, 0, 0.3], [0, 0, 1.2], [0, 0, 2.1], [0, 0, 2.2]]), np.array([0.26, 0.28, 0.24, 0.12]))
    pot = revolve([(0.4, 0), (0.55, 0.45), (0.5, 0.45)])
    return merge([pot, trunk, arm(1, rng.uniform(0.8, 1.2)), arm(-1, rng.uniform(0.9, 1.4))])


def _snowman(rng: np.random.Generator) -> Mesh:
    r = rng.uniform(0.42, 0.55)
    nose = revolve([(0.1, 0), (0.01, 0.5)]).turned(0, 90).moved(y=-0.3, z=1.9)
    return merge([sphere(0.75).moved(z=0.7), sphere(r).moved(z=1.4 + r / 3), sphere(0.36).moved(z=1.95), nose])


def _chair(rng: np.random.Generator) -> Mesh:
    back = rng.uniform(0.8, 1.3)
    legs = [box(0.14, 0.14, 0.8).moved(x, y) for x in (-0.42, 0.42) for y in (-0.42, 0.42)]
    return merge([*legs, box(1, 1, 0.16).moved(z=0.8), box(1, 0.14, back).moved(y=0.43, z=0.9)])


def _table(rng: np.random.Generator) -> Mesh:
    w = rng.uniform(1.4, 2)
    legs = [box(0.16, 0.16, 1).moved(x * w / 2.4, y) for x in (-1, 1) for y in (-0.42, 0.42)]
    return merge([*legs, box(w, 1.1, 0.16).moved(z=1)])


def _house(rng: np.random.Generator) -> Mesh:
    w, h = rng.uniform(1.1, 1.6), rng.uniform(0.6, 0.9)
    roof = extrude([(-w * 0.6, 0), (w * 0.6, 0), (0, 0.75)], 1.3).turned(0, 90).moved(y=0.65, z=h)
    return merge([box(w, 1.1, h), roof, box(0.22, 0.22, 0.6).moved(x=w / 4, y=0.2, z=h + 0.25)])


def _car(rng: np.random.Generator) -> Mesh:
    cabin = rng.uniform(0.7, 1.1)
    wheel = revolve([(0.26, 0), (0.26, 0.18)], sides=20).turned(0, 90)
    wheels = [wheel.moved(x, y, 0.26) for x in (-0.58, 0.58) for y in (-0.38, 0.56)]
    return merge([box(2, 0.9, 0.42).moved(z=0.2), box(cabin, 0.76, 0.4).moved(x=0.12, z=0.62), *wheels])


def _rocket(rng: np.random.Generator) -> Mesh:
    r = rng.uniform(0.3, 0.42)
    body = revolve([(r * 0.7, 0.15), (r, 0.6), (r, 1.5), (r * 0.6, 2), (0.02, 2.4)])
    fin = extrude([(0, 0), (0.75, -0.1), (0.7, 0.3), (0, 0.8)], 0.1).turned(0, 90)
    return merge([body, *(fin.moved(x=r * 0.8, y=0.05, z=0.1).turned(2, 120 * k + 30) for k in range(3))])


def _robot(rng: np.random.Generator) -> Mesh:
    w, head = rng.uniform(0.7, 1.0), rng.uniform(0.45, 0.65)
    legs = [box(0.26, 0.34, 0.6).moved(x * w / 3) for x in (-1, 1)]
    arms = [box(0.2, 0.26, 0.8).moved(x * (w / 2 + 0.14), z=0.65) for x in (-1, 1)]
    face = [sphere(0.09).moved(x * head / 4, -head / 2, 1.9) for x in (-1, 1)]
    return merge([*legs, *arms, *face, box(w, 0.6, 0.95).moved(z=0.6), box(head, head, 0.5).moved(z=1.62)])


def _tree(rng: np.random.Generator) -> Mesh:
    tiers = int(rng.integers(2, 4))
    crown = [revolve([(0.9 - 0.22 * k, 0.5 + 0.5 * k), (0.06, 1.35 + 0.5 * k)]) for k in range(tiers)]
    return merge([revolve([(0.18, 0), (0.16, 0.6)]), *crown])


def _dumbbell(rng: np.random.Generator) -> Mesh:
    r = rng.uniform(0.4, 0.6)
    bar = tube(np.array([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]]), np.full(3, 0.14))
    return merge([bar, sphere(r).moved(x=-1), sphere(r).moved(x=1)])


def _dog(rng: np.random.Generator) -> Mesh:
    body, leg = rng.uniform(1.0, 1.4), rng.uniform(0.4, 0.65)
    legs = [tube(np.array([[x, y, 0], [x, y, leg]]), np.full(2, 0.12)) for x in (-0.2, 0.2) for y in (-0.4, 0.4)]
    ears = [sphere(0.16).scaled(0.5, 0.6, 1.4).moved(x, -0.7, leg + 0.75) for x in (-0.28, 0.28)]
    trunk = sphere(0.36).scaled(0.95, 1.6 * body, 0.95).moved(z=leg + 0.25)
    head = [sphere(0.31).moved(y=-0.75, z=leg + 0.65), sphere(0.17).scaled(1, 1.5, 0.9).moved(y=-1.02, z=leg + 0.56)]
    tail = tube(np.array([[0, 0.55 * body, leg + 0.4], [0, 0.55 * body + 0.35, leg + 0.8]]), np.array([0.09, 0.06]))
    return merge([*legs, *ears, trunk, *head, tail])


def _building_block(rng: np.random.Generator) -> Mesh:
    columns, height = int(rng.integers(2, 4)), rng.uniform(0.6, 1.1)
    stud = revolve([(0.28, 0), (0.28, 0.22)], sides=20)
    studs = [stud.moved(i - (columns - 1) / 2, j - 0.5, height) for i in range(columns) for j in range(2)]
    return merge([box(columns, 2, height), *studs])


SHAPES: dict[str, Builder] = {
    "ball": lambda rng: sphere(1),
    "bell": _bell,
    "bottle": _bottle,
    "bowl": _bowl,
    "building block": _building_block,
    "bunny": _file("bunny.obj"),
    "cactus": _cactus,
    "can": _can,
    "car": _car,
    "chair": _chair,
    "cone": _cone,
    "cross": _cross,
    "cube": lambda rng: box(1, 1, 1),
    "dog": _dog,
    "duck": _file("duck.obj", turn=(0, 90)),
    "dumbbell": _dumbbell,
    "gear": _gear,
    "goblet": _goblet,
    "heart": _heart,
    "house": _house,
    "lamp": _lamp,
    "mug": _file("objects/mug.obj"),
    "mushroom": _mushroom,
    "pawn": _chess_pawn,
    "pyramid": lambda rng: revolve([(1, 0), (0.01, rng.uniform(1.1, 1.7))], sides=int(rng.integers(3, 6))),
    "ring": _ring,
    "robot": _robot,
    "rocket": _rocket,
    "sculpture": _sculpture,
    "snake": _snake,
    "snowman": _snowman,
    "spinning top": _spinning_top,
    "spring": _spring,
    "star": _star,
    "table": _table,
    "teddy": _file("teddy2_VHACD_CHs.obj", turn=(0, 90)),
    "tree": _tree,
    "vase": _vase,
}
