"""Positions of generated images between real photos of other subjects (0) and of the same subject (1).

Each has a 95 % interval that resamples subjects, like the differences of two models' positions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.evaluation.estimates import (
    Clustered,
    Estimate,
    Floats,
    finite_estimate,
    interval,
    ratio,
    undefined,
)


@dataclass(frozen=True)
class Paired:
    """Values of two models on the same samples: equal clusters, in the same order."""

    ours: Clustered
    theirs: Clustered

    @property
    def differences(self) -> Clustered:
        """``ours`` - ``theirs``, sample by sample."""
        return Clustered(self.ours.values - self.theirs.values, self.ours.index, self.ours.names)


def position(images: Clustered, ceiling: Clustered, floor: Clustered, *, seed: int = 0) -> Estimate:
    """Position of images between what real photos of other subjects (0) and of the same subject (1) reach.

    With i, c, f the means of a subject's images, ceiling and floor, and w its number of images, it is
    Σ w (i - f) / Σ w (c - f) over the subjects that have all three: each mean is of the same mix of subjects, whatever
    the number of their photos. The interval resamples subjects, each with its images, ceiling and floor together; of
    one subject it resamples the samples of each of the three, and says nothing about other subjects. Methods are those
    of :func:`~lookalike.evaluation.estimates.mean_of`. ``n`` is the number of images.

    NaN, if the lower end of the 95 % interval of the denominator is not above 0: the ratio could then be anything
    (Fieller 1954). NaN with ``n`` = 0, if no subject has all three; NaN, if a value is not finite.
    """
    names = np.intersect1d(np.intersect1d(images.names, ceiling.names), floor.names)
    if len(names) == 0:
        return undefined(0)
    count = int(images.totals()[1][np.searchsorted(images.names, names)].sum())
    if not all(np.isfinite(part.values).all() for part in (images, ceiling, floor)):
        return undefined(count)
    if len(names) == 1:
        return _position_of_one(*(_own(part, names[0]) for part in (images, ceiling, floor)), count=count, seed=seed)
    above, span, weights = _spans(images, ceiling, floor, names)
    if not interval((span, weights), ratio, seed, paired=True)[0] > 0:
        return undefined(count)
    return finite_estimate(float(above.sum() / span.sum()), interval((above, span), ratio, seed, paired=True), count)


def position_difference(images: Paired, ceiling: Paired, floor: Paired, *, seed: int = 0) -> Estimate:
    """Position of one model minus that of another one, on samples that both have (:func:`position`).

    The interval resamples subjects, each with the images, ceilings and floors of both models together, so that what
    makes a subject easy for both does not widen it; of one subject it resamples its samples. Real photos are those that
    each model's evaluation measured, at the size of its images. ``n`` is the number of images of one model. NaN as of
    :func:`position`, if one of both positions has no value.
    """
    names = np.intersect1d(np.intersect1d(images.ours.names, ceiling.ours.names), floor.ours.names)
    if len(names) == 0:
        return undefined(0)
    parts = [(each.ours, each.theirs) for each in (images, ceiling, floor)]
    count = int(np.isin(images.ours.names[images.ours.index], names).sum())
    if not all(np.isfinite(side.values).all() for pair in parts for side in pair):
        return undefined(count)
    if len(names) == 1:
        return _difference_of_one([tuple(_own(side, names[0]) for side in pair) for pair in parts], count, seed)
    sums: list[Floats] = []
    for image, top, bottom in zip(*parts, strict=True):  # of one model
        above, span, weights = _spans(image, top, bottom, names)
        if not interval((span, weights), ratio, seed, paired=True)[0] > 0:
            return undefined(count)
        sums += [above, span]
    mean = float(_between(sums[0], sums[1], sums[2], sums[3]))
    return finite_estimate(mean, interval(tuple(sums), _between, seed, paired=True), count)


def _between(above: Floats, span: Floats, their_above: Floats, their_span: Floats, axis: int = -1) -> Floats:
    return ratio(above, span, axis) - ratio(their_above, their_span, axis)


def _spans(
    images: Clustered, ceiling: Clustered, floor: Clustered, names: npt.NDArray[np.object_]
) -> tuple[Floats, Floats, Floats]:
    """Of each subject of ``names``, with w images: w (image - floor), w (ceiling - floor), and w."""
    sums, sizes = images.totals()
    chosen = np.searchsorted(images.names, names)
    weights, floors = sizes[chosen], floor.means_of(names)
    return sums[chosen] - weights * floors, weights * (ceiling.means_of(names) - floors), weights


def _difference_of_one(parts: list[tuple[Floats, ...]], count: int, seed: int) -> Estimate:
    """:func:`position_difference` of one subject: samples are resampled by their numbers, the same for both models."""
    ours, theirs = zip(*parts, strict=True)
    if any(np.isnan(_position_of_one(*side, count=count, seed=seed).mean) for side in (ours, theirs)):
        return undefined(count)
    numbers = tuple(np.arange(max(2.0, len(part))) % len(part) for part in ours)  # scipy needs 2

    def difference(*chosen: Floats, axis: int = -1) -> Floats:
        found = []
        for side in (ours, theirs):
            image, ceiling, floor = (
                part[at.astype(np.int64)].mean(axis=axis) for part, at in zip(side, chosen, strict=True)
            )
            found.append((image - floor) / (ceiling - floor))
        return np.asarray(found[0] - found[1])

    return finite_estimate(float(difference(*numbers)), interval(numbers, difference, seed, paired=False), count)


def _position_of_one(images: Floats, ceiling: Floats, floor: Floats, *, count: int, seed: int) -> Estimate:
    parts = tuple(np.repeat(part, 2) if len(part) == 1 else part for part in (images, ceiling, floor))  # scipy needs 2

    def span(ceiling: Floats, floor: Floats, axis: int = -1) -> Floats:
        return np.asarray(ceiling.mean(axis=axis) - floor.mean(axis=axis))

    def share(images: Floats, ceiling: Floats, floor: Floats, axis: int = -1) -> Floats:
        return span(images, floor, axis) / span(ceiling, floor, axis)

    if not interval(parts[1:], span, seed, paired=False)[0] > 0:
        return undefined(count)
    return finite_estimate(float(share(images, ceiling, floor)), interval(parts, share, seed, paired=False), count)


def _own(samples: Clustered, name: str) -> Floats:
    return np.asarray(samples.values[samples.index == np.searchsorted(samples.names, name)])
