"""Stand-ins: real photos that take the place of generated images, for the ceiling and the floors of a likeness."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lookalike.evaluation.suites.cases import Case, Suite
from lookalike.evaluation.suites.samples import Photo, Sample, distinct

StandInKind = Literal["ceiling", "floor", "hard_floor"]
"""A photo of the subject itself, of another subject, of another subject of the same class."""


@dataclass(frozen=True)
class StandIn:
    """A real photo that is measured as if it were generated for a sample."""

    case_id: str
    """Unique together with the kind."""
    kind: StandInKind
    sample: int
    """The sample whose subject it is compared with, in the suite's pool."""
    photo: Photo
    """The photo that takes the image's place."""
    references: tuple[Photo, ...]
    """The references of the subject's images, without this photo."""
    photos: tuple[Photo, ...]
    """The photos of the subject, without this photo."""


def stand_ins(suite: Suite, cases: Sequence[Case], number: int) -> list[StandIn]:
    """List up to ``number`` stand-ins of each kind for each subject of ``cases``, chosen by the suite's seed.

    A photo is never compared with itself or with a file of equal bytes. Images of several subjects have no stand-ins,
    since no photo shows those together, and a subject with one photo has no ceiling.
    """
    by_subject: dict[str, list[int]] = {}
    for case in cases:
        by_subject.setdefault(suite.pool[case.target].subject, []).append(case.target)
    listed: list[StandIn] = []
    for samples in by_subject.values():
        if len(suite.pool[samples[0]].shown) == 1:
            listed += _of_subject(suite, samples, number)
    return listed


def _of_subject(suite: Suite, samples: Sequence[int], number: int) -> Iterator[StandIn]:
    index = samples[0]
    sample = suite.pool[index]
    photos = suite.photos_for(sample)
    references = distinct(photo for each in samples for photo in suite.pool[each].references)
    for kind in get_args(StandInKind):
        chosen = _own(suite, sample, references) if kind == "ceiling" else _of_others(suite, index, kind, number)
        for photo in distinct(chosen, () if kind == "ceiling" else (*photos, *references))[:number]:
            others = distinct(photos, [photo])
            given = distinct(references, [photo]) or others
            if given:
                yield StandIn(f"{sample.subject}#{photo.sha256[:16]}", kind, index, photo, given, others)


def _own(suite: Suite, sample: Sample, references: Sequence[Photo]) -> tuple[Photo, ...]:
    """The subject's photos in a seeded order, those that are no reference first."""
    photos = suite.photos_for(sample)
    shuffled = [photos[i] for i in suite.rng(sample.subject, "ceiling").permutation(len(photos))]
    return (*distinct(shuffled, references), *(photo for photo in shuffled if not distinct([photo], references)))


def _of_others(suite: Suite, index: int, kind: StandInKind, number: int) -> list[Photo]:
    """About ``2 * number`` photos of other subjects in a seeded order, from as many subjects as possible."""
    subject = suite.pool[index].subject
    names = suite.others(index, same_class=kind == "hard_floor")
    rng = suite.rng(subject, kind)
    turns = []
    for name in (names[i] for i in rng.permutation(len(names))[: 2 * number]):
        photos = suite.photos_of(name)
        turns.append([photos[i] for i in rng.permutation(len(photos))])
    return [turn[nth] for nth in range(2 * number) for turn in turns if nth < len(turn)][: 2 * number]
