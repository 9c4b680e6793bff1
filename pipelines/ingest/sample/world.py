"""Subjects and photos of a sample world, as functions of seeds."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lookalike.errors import ConfigError
from pipelines.ingest.config import SampleWorldConfig
from pipelines.ingest.sample import shapes, vocabulary
from pipelines.ingest.sample.patterns import SolidPattern
from pipelines.ingest.sample.scene import Body, View

_SUBJECT, _PHOTO, _CAPTION = 1, 2, 4  # purposes in seeds; defects.py has 3
_SCULPTURES = 0.3  # share of subjects with a random body, whose class name does not describe it


@dataclass(frozen=True)
class Subject:
    """One subject of the sample world."""

    name: str
    """Unique name over all worlds, such as ``duck_0000012``: shape, seed, number."""
    seed: tuple[int, int]
    """(seed of the world, number); everything else follows from these."""
    shape: str
    """Shape, which is also the class name."""
    colours: tuple[str, str]
    """First and second colour."""
    pattern: str
    """A key of ``vocabulary.PATTERNS``."""
    twin_of: str | None
    """Name of the subject with the same colours and pattern but another shape, if it is a twin."""


@dataclass(frozen=True)
class Photo:
    """One photo to render."""

    key: str
    """Sample key in the raw shards."""
    subject: Subject
    """The subject that it shows."""
    filed_under: Subject
    """The subject in whose folder it is; differs from ``subject`` if the photo is misfiled."""
    view: View
    """Camera and light."""
    place: str
    """A key of ``vocabulary.PLACES``."""
    bare: bool = False
    """Whether its caption leaves out colours and pattern."""
    defect: str | None = None
    """The planted defect, one of defects.KINDS or MORE_DEFECTS, if it has one."""
    variant: int = 0
    """Number that selects a variant of the defect."""
    original: str | None = None
    """Key of the photo that a duplicate repeats."""

    @property
    def caption(self) -> str:
        """The caption. That of a misfiled photo describes the subject in whose folder it is."""
        side = vocabulary.view_name(self.view.azimuth_deg, self.view.elevation_deg)
        thing = self.filed_under
        look = None if self.bare else (thing.pattern, thing.colours)
        return vocabulary.caption(thing.shape, self.place, side, look)


def subject(seed: int, number: int, allowed: tuple[str, ...] = ()) -> Subject:
    """Return subject ``number`` of the world ``seed``, with a shape in ``allowed`` unless that is empty.

    Every fourth subject is the twin of the one before it, so that colours alone do not identify subjects.
    """
    rng = np.random.default_rng([_SUBJECT, seed, number])
    first = subject(seed, number - 1, allowed) if number % 4 == 3 else None
    others = [shape for shape in allowed or shapes.names() if first and shape != first.shape]
    if first and others:
        shape, colours, pattern = others[rng.integers(len(others))], first.colours, first.pattern
    else:
        first = None
        kinds = allowed or [name for name in shapes.names() if name != "sculpture"]
        shape = kinds[rng.integers(len(kinds))]
        if not allowed and rng.random() < _SCULPTURES:
            shape = "sculpture"
        first_colour, second_colour = rng.permutation(list(vocabulary.COLOURS))[:2]
        colours = (str(first_colour), str(second_colour))
        pattern = list(vocabulary.PATTERNS)[rng.integers(len(vocabulary.PATTERNS))]
    name = f"{shape.replace(' ', '_')}_{seed:02d}{number:05d}"
    return Subject(name, (seed, number), shape, colours, pattern, twin_of=first.name if first else None)


def photo(thing: Subject, index: int, views: int, key: str | None = None, bare_captions: float = 0.0) -> Photo:
    """Return photo ``index`` of a subject; the first ``views`` are at evenly spaced angles."""
    rng = np.random.default_rng([_PHOTO, *thing.seed, index])
    turn = np.random.default_rng([_PHOTO, *thing.seed]).uniform(-30, 30)
    places = np.random.default_rng([_PHOTO, *thing.seed]).permutation(list(vocabulary.PLACES))
    azimuth = (turn + 360 * index / views + rng.uniform(-22, 22)) % 360
    elevation = rng.uniform(50, 62) if rng.random() < 0.12 else rng.uniform(10, 40)
    view = View(
        azimuth_deg=float(azimuth),
        elevation_deg=float(elevation),
        distance=float(rng.uniform(2.0, 2.7)),
        shift=(float(rng.uniform(-0.16, 0.16)), float(rng.uniform(-0.08, 0.16))),
        light_deg=float(rng.uniform(-70, 70)),
        exposure=float(rng.uniform(0.88, 1.1)),
        place_turn_deg=float(rng.uniform(0, 360)),
    )
    place = str(places[index % len(places)])
    bare = np.random.default_rng([_CAPTION, *thing.seed, index]).random() < bare_captions
    return Photo(key or f"{thing.name}-{index:02d}", thing, thing, view, place, bool(bare))


@lru_cache(maxsize=8)
def body(thing: Subject) -> Body:
    """Build the mesh and pattern of a subject from its seed."""
    rng = np.random.default_rng([_SUBJECT, *thing.seed, 7])
    mesh = shapes.build(thing.shape, rng)
    return Body(mesh, SolidPattern(thing.pattern, mesh, rng), thing.colours)


def subjects(config: SampleWorldConfig) -> list[Subject]:
    """Return every subject of the world, in order. Raises ConfigError for an unknown shape."""
    unknown = sorted(set(config.shapes) - set(shapes.names()))
    if unknown:
        raise ConfigError(
            "sample.shapes has an unknown shape", value=unknown[0], fix=f"choose from {', '.join(shapes.names())}"
        )
    numbers = range(config.first_subject, config.first_subject + config.subjects)
    return [subject(config.seed, number, tuple(config.shapes)) for number in numbers]
