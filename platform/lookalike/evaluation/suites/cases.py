"""Suites: which samples an evaluation measures, with whose conditions, and which images. Pure functions of a seed."""

import itertools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lookalike.config import fingerprint
from lookalike.data.permutation import Permutation
from lookalike.errors import InputError
from lookalike.evaluation.scores import ConditionMode
from lookalike.evaluation.suites.samples import MOST_PHOTOS, Photo, Sample, distinct

_SHUFFLED = 4_096  # subjects, of which two are chosen by a permutation of all; of more it would take longer than a loss
_RUN = 64  # neighbouring rows that are chosen together: they are read at once, and often show the same subjects


def chosen_rows(rows: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose the rows of a table of ``rows`` rows that a suite is made of: int64, ascending.

    These are all rows, or of more than ``most`` rows about ``most``, in runs of 64 neighbours that are spread over the
    table.
    """
    if rows <= most:
        return np.arange(rows)
    runs = np.sort(Permutation(-(-rows // _RUN), (seed,))(np.arange(-(-most // _RUN))))
    chosen = (runs[:, None] * _RUN + np.arange(_RUN)).ravel()
    return chosen[chosen < rows]


@dataclass(frozen=True, slots=True)
class Case:
    """One paired measurement of the held-out loss, or one image to generate. Numbers index the suite's pool."""

    case_id: str
    """Seeds the noise (and of a loss the noise level), the same for all conditions and denoising schedules."""
    target: int
    """The sample whose target is denoised, or whose subject and prompt the image should show."""
    conditions: int
    """The sample whose prompt and references the model gets (``target``, unless they are shuffled)."""
    other: int | None
    """A sample of another subject: the wrong conditions of a loss, or the comparison of an identity margin. None if
    the pool has one subject only."""


class Suite:
    """Samples to measure, and a pool of them and of distractors to take wrong conditions from.

    The suite depends on the ids of ``samples`` and ``distractors`` and on the seed, not on their order. ``photos`` has
    all photos of a subject by its name; by default they are those of its samples. Images are generated of ``prompted``,
    samples of the same subjects with other prompts; by default of ``samples``.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        distractors: Sequence[Sample] = (),
        seed: int = 0,
        photos: Mapping[str, tuple[Photo, ...]] | None = None,
        prompted: Sequence[Sample] = (),
    ) -> None:
        if not samples:
            raise InputError("the suite has no triplets", fix="name a snapshot with a validation split")
        self.seed = seed
        measured = _round_robin(samples)
        self.count = len(measured)
        self.pool = [*measured, *sorted(distractors, key=lambda sample: sample.sample_id)]
        self._photos = dict(photos or {})
        self._chosen: dict[str, tuple[Photo, ...]] = {}  # of these, by subject
        self._by_subject: dict[str, list[int]] = defaultdict(list)
        for index, sample in enumerate(self.pool):
            self._by_subject[sample.subject].append(index)
        self._asked: dict[str, list[int]] = defaultdict(list)  # what images are generated of, by subject
        first = len(self.pool) if prompted else 0
        self.pool += prompted
        for index in range(first, len(self.pool) if prompted else self.count):
            self._asked[self.pool[index].subject].append(index)
        self._several = any(sample.subjects for sample in self.pool)

    def losses(self, number: int, conditions: ConditionMode) -> list[Case]:
        """List ``number`` measurements: each sample at one noise level first, then at a second one, and so on.

        A suite whose samples have no targets has none.
        """
        if any(sample.target is None and not sample.damage for sample in self.pool[: self.count]):
            return []
        cases = []
        for level, index in (divmod(each, self.count) for each in range(number)):
            case_id = f"{self.pool[index].sample_id}#{level}"
            first, second = self._of_other_subjects(case_id, index)
            right, other = (index, first) if conditions == "right" else (first, second)
            cases.append(Case(case_id, index, index if right is None else right, other))
        return cases

    def images(self, subjects: int, prompts: int, conditions: ConditionMode, per_prompt: int = 1) -> list[Case]:
        """List up to ``prompts`` samples of each of up to ``subjects`` subjects, with different prompts if possible.

        Each gives ``per_prompt`` cases, which differ in their noise: ``ID``, or if several ``ID@0``, ``ID@1``, ….
        """
        cases = []
        for own in list(self._asked.values())[:subjects]:
            first_of_prompt = list({self.pool[index].prompt: index for index in reversed(own)}.values())[::-1]
            first = set(first_of_prompt)
            rest = [index for index in own if index not in first]
            for index in [*first_of_prompt, *rest][:prompts]:
                sample_id = self.pool[index].sample_id
                wrong, other = self._of_other_subjects(f"{sample_id}#image", index)
                given = index if conditions == "right" or wrong is None else wrong
                names = [sample_id] if per_prompt == 1 else [f"{sample_id}@{number}" for number in range(per_prompt)]
                cases += [Case(name, index, given, other) for name in names]
        return cases

    def photos_of(self, subject: str) -> tuple[Photo, ...]:
        """The photos of a subject, up to 16 that differ, ordered by their hash."""
        if subject not in self._chosen:
            photos = self._photos.get(subject)
            if photos is None:
                samples = [self.pool[index] for index in self._by_subject.get(subject, [])]
                photos = tuple(photo for each in samples for photo in (each.target, *each.references) if photo)
            chosen = sorted(distinct(photos), key=lambda photo: photo.sha256)[:MOST_PHOTOS]
            self._chosen[subject] = tuple(chosen)
        return self._chosen[subject]

    def targets_for(self, sample: Sample) -> tuple[Photo, ...]:
        """The targets of the suite's samples of the subjects that an image of ``sample`` should show, up to 16."""
        indices = [index for subject in sample.shown for index in self._by_subject.get(subject, [])]
        targets = distinct(photo for index in indices if (photo := self.pool[index].target))
        return tuple(sorted(targets, key=lambda photo: photo.sha256)[:MOST_PHOTOS])

    def photos_for(self, sample: Sample) -> tuple[Photo, ...]:
        """The photos of the subjects that an image of ``sample`` should show, up to 16 in all, as many of each."""
        if len(sample.shown) == 1:
            return self.photos_of(sample.shown[0])
        share = MOST_PHOTOS // len(sample.shown)
        return distinct(photo for subject in sample.shown for photo in self.photos_of(subject)[:share])

    def others(self, index: int, same_class: bool = False) -> list[str]:
        """The names of subjects that share no subject with a sample of the pool, sorted; of its class if asked for."""
        sample = self.pool[index]
        names = self._by_class.get(sample.class_name.casefold(), []) if same_class else self._subjects
        if self._several:
            shown = set(sample.shown)
            return [name for name in names if shown.isdisjoint(self.pool[self._by_subject[name][0]].shown)]
        own = bisect_left(names, sample.subject)
        return names[:own] + names[own + (own < len(names) and names[own] == sample.subject) :]

    def rng(self, *identity: str) -> np.random.Generator:
        """Return a generator that is seeded by the suite's seed and ``identity``."""
        return np.random.default_rng(int(fingerprint([self.seed, *identity])[:16], 16))

    def _of_other_subjects(self, identity: str, index: int) -> tuple[int | None, int | None]:
        """Choose samples of two other subjects (of the same one if there is no second), seeded by ``identity``."""
        others, own = self._subjects, bisect_left(self._subjects, self.pool[index].subject)
        if self._several:
            others, own = self.others(index), len(self._subjects)
        count = len(others) - (own < len(others))
        if not count:
            return None, None
        rng = self.rng(identity)
        numbers = rng.permutation(count)[:2] if count <= _SHUFFLED else rng.choice(count, 2, replace=False)
        subjects = [others[number + (number >= own)] for number in numbers.tolist()]
        first, second = (int(rng.choice(self._by_subject[subject])) for subject in (subjects[0], subjects[-1]))
        return first, second

    @cached_property
    def _by_class(self) -> dict[str, list[str]]:
        """The sorted names of subjects by their class, if they have one."""
        names: dict[str, list[str]] = defaultdict(list)
        for name in self._subjects:
            class_name = self.pool[self._by_subject[name][0]].class_name.casefold()
            if class_name:
                names[class_name].append(name)
        return names

    @cached_property
    def _subjects(self) -> list[str]:
        return sorted(self._by_subject)


def _round_robin(samples: Sequence[Sample]) -> list[Sample]:
    """Order samples by rounds, one of each subject: any beginning of the list covers most subjects."""
    by_subject: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: (sample.subject, sample.sample_id)):
        by_subject[sample.subject].append(sample)
    rounds = itertools.zip_longest(*by_subject.values())
    return [sample for turn in rounds for sample in turn if sample is not None]
