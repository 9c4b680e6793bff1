"""What an evaluation measures: which samples with whose conditions, and which images. Pure functions of a seed."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.config import fingerprint
from lookalike.data.triplets import Triplet
from lookalike.errors import InputError
from lookalike.evaluation.scores import ConditionMode


@dataclass(frozen=True)
class LossSample:
    """One paired measurement of the held-out loss. The numbers index the suite's pool of triplets."""

    sample_id: str
    """Decides noise and noise level, in both arms alike."""
    target: int
    """The triplet whose target is denoised."""
    right: int
    """The triplet whose prompt and references condition the first arm (``target``, unless the probe shuffles)."""
    shuffled: int | None
    """A triplet of another subject, for the second arm; None where the pool has one subject only."""


@dataclass(frozen=True)
class ImageCase:
    """One subject with one prompt, generated at every setting of the stages."""

    case_id: str
    """Decides the initial noise."""
    target: int
    """The triplet whose prompt and references are the task."""
    conditions: int
    """The triplet whose prompt and references the model gets (``target``, unless the probe shuffles)."""
    other: int | None
    """A triplet of a third subject, for the identity margin; None where the pool has no other subject."""


class Suite:
    """Triplets to measure, and a pool of them and of distractors to take wrong conditions from.

    The order of ``triplets`` and ``distractors`` does not matter, their ids and the seed do.
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

    def losses(self, samples: int, conditions: ConditionMode) -> list[LossSample]:
        """``samples`` measurements: each triplet at one noise level first, then at a second one, and so on."""
        found = []
        for draw, index in (divmod(number, self.count) for number in range(samples)):
            sample_id = f"{self.pool[index].triplet_id}#{draw}"
            first, second = self._strangers(sample_id, index, 2)
            right, shuffled = (index, first) if conditions == "right" else (first, second)
            found.append(LossSample(sample_id, index, index if right is None else right, shuffled))
        return found

    def images(self, subjects: int, prompts: int, conditions: ConditionMode) -> list[ImageCase]:
        """Up to ``prompts`` cases, with different prompts where there are, of each of up to ``subjects`` subjects."""
        chosen = list(dict.fromkeys(t.subject for t in self.pool[: self.count]))[:subjects]
        found = []
        for subject in chosen:
            own = [index for index in self._by_subject[subject] if index < self.count]
            first_of_prompt = list({self.pool[index].prompt: index for index in reversed(own)}.values())[::-1]
            rest = [index for index in own if index not in first_of_prompt]
            for index in [*first_of_prompt, *rest][:prompts]:
                case_id = self.pool[index].triplet_id
                stranger, other = self._strangers(f"{case_id}#image", index, 2)
                wrong = stranger if conditions == "shuffled" else None
                found.append(ImageCase(case_id, index, index if wrong is None else wrong, other))
        return found

    def _strangers(self, identity: str, index: int, count: int) -> list[int | None]:
        """``count`` triplets of different other subjects (repeated where there are too few), by identity."""
        own = self.pool[index].subject
        others = [subject for subject in sorted(self._by_subject) if subject != own]
        if not others:
            return [None] * count
        rng = np.random.default_rng(int(fingerprint([self.seed, identity])[:16], 16))
        subjects = [others[i] for i in rng.permutation(len(others))[:count]]
        return [
            int(rng.choice(self._by_subject[subject])) for subject, _ in zip(itertools.cycle(subjects), range(count))
        ]


def _round_robin(triplets: Sequence[Triplet]) -> list[Triplet]:
    """One triplet of each subject, then the next of each: any beginning of the list covers most subjects."""
    by_subject: dict[str, list[Triplet]] = defaultdict(list)
    for triplet in sorted(triplets, key=lambda t: (t.subject, t.triplet_id)):
        by_subject[triplet.subject].append(triplet)
    rounds = itertools.zip_longest(*by_subject.values())
    return [triplet for turn in rounds for triplet in turn if triplet is not None]
