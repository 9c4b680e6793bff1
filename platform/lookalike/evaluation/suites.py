"""Suites: which samples an evaluation measures, with whose conditions, and which images. Pure functions of a seed."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lookalike.config import fingerprint
from lookalike.data.permutation import Permutation
from lookalike.data.triplets import Triplet
from lookalike.errors import InputError
from lookalike.evaluation.scores import ConditionMode

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


@dataclass(frozen=True)
class Case:
    """One paired measurement of the held-out loss, or one image to generate. Numbers index the suite's pool."""

    case_id: str
    """Seeds the noise (and of a loss the noise level), the same for all conditions and denoising schedules."""
    target: int
    """The triplet whose target is denoised, or whose subject and prompt the image should show."""
    conditions: int
    """The triplet whose prompt and references the model gets (``target``, unless they are shuffled)."""
    other: int | None
    """A triplet of another subject: the wrong conditions of a loss, or the comparison of an identity margin. None if
    the pool has one subject only."""


class Suite:
    """Triplets to measure, and a pool of them and of distractors to take wrong conditions from.

    The suite depends on the ids of ``triplets`` and ``distractors`` and on the seed, not on their order.
    """

    def __init__(self, triplets: Sequence[Triplet], distractors: Sequence[Triplet] = (), seed: int = 0) -> None:
        if not triplets:
            raise InputError("the suite has no triplets", fix="name a snapshot with a validation split")
        self.seed = seed
        measured = _round_robin(triplets)
        self.count = len(measured)
        self.pool = [*measured, *sorted(distractors, key=lambda t: t.triplet_id)]
        self._by_subject: dict[str, list[int]] = defaultdict(list)
        for index, triplet in enumerate(self.pool):
            self._by_subject[triplet.subject].append(index)

    def losses(self, samples: int, conditions: ConditionMode) -> list[Case]:
        """List ``samples`` measurements: each triplet at one noise level first, then at a second one, and so on."""
        cases = []
        for level, index in (divmod(number, self.count) for number in range(samples)):
            case_id = f"{self.pool[index].triplet_id}#{level}"
            first, second = self._of_other_subjects(case_id, index)
            right, other = (index, first) if conditions == "right" else (first, second)
            cases.append(Case(case_id, index, index if right is None else right, other))
        return cases

    def images(self, subjects: int, prompts: int, conditions: ConditionMode) -> list[Case]:
        """List up to ``prompts`` cases of each of up to ``subjects`` subjects, with different prompts if possible."""
        chosen = list(dict.fromkeys(t.subject for t in self.pool[: self.count]))[:subjects]
        cases = []
        for subject in chosen:
            own = [index for index in self._by_subject[subject] if index < self.count]
            first_of_prompt = list({self.pool[index].prompt: index for index in reversed(own)}.values())[::-1]
            rest = [index for index in own if index not in first_of_prompt]
            for index in [*first_of_prompt, *rest][:prompts]:
                case_id = self.pool[index].triplet_id
                wrong, other = self._of_other_subjects(f"{case_id}#image", index)
                given = wrong if conditions == "shuffled" else None
                cases.append(Case(case_id, index, index if given is None else given, other))
        return cases

    def _of_other_subjects(self, identity: str, index: int) -> tuple[int | None, int | None]:
        """Choose triplets of two other subjects (of the same one if there is no second), seeded by ``identity``."""
        own = self._subjects.index(self.pool[index].subject)
        others = self._subjects[:own] + self._subjects[own + 1 :]
        if not others:
            return None, None
        rng = np.random.default_rng(int(fingerprint([self.seed, identity])[:16], 16))
        subjects = [others[i] for i in rng.permutation(len(others))[:2]]
        first, second = (int(rng.choice(self._by_subject[subject])) for subject in (subjects[0], subjects[-1]))
        return first, second

    @cached_property
    def _subjects(self) -> list[str]:
        return sorted(self._by_subject)


def _round_robin(triplets: Sequence[Triplet]) -> list[Triplet]:
    """Order triplets by rounds, one of each subject: any beginning of the list covers most subjects."""
    by_subject: dict[str, list[Triplet]] = defaultdict(list)
    for triplet in sorted(triplets, key=lambda t: (t.subject, t.triplet_id)):
        by_subject[triplet.subject].append(triplet)
    rounds = itertools.zip_longest(*by_subject.values())
    return [triplet for turn in rounds for triplet in turn if triplet is not None]
