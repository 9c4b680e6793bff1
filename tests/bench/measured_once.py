"""Measure the base of personal models once for all evaluations of one suite in this process.

The base's images and losses, and the stand-ins, do not depend on the personal model beside which they are measured:
same weights, cases, noise and batches. An evaluation inside the block takes the rows, and copies the images, of an
earlier one whose configuration differs in nothing but its bundle and its place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from lookalike.evaluation.measurements import Measurement
from pipelines.evaluate import worker
from pipelines.evaluate.kept import read_image, write_image
from pipelines.evaluate.units import EvaluationWork, Unit, image_key
from pipelines.evaluate.worker import Evaluator

_Made = tuple[list[Measurement], dict[str, np.ndarray]]  # rows; images by key
_MADE: dict[tuple[str, ...], _Made] = {}


@contextmanager
def base_measured_once() -> Iterator[None]:
    """Let evaluations in this process (``actors.count`` 0) share what they measure of the base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "Evaluator", _Sharing)
        yield


class _Sharing(Evaluator):
    def _losses(self, unit: Unit) -> list[Measurement]:
        return self._shared(unit, super()._losses) if unit.bundle else super()._losses(unit)

    def _images(self, unit: Unit) -> list[Measurement]:
        return self._shared(unit, super()._images) if unit.bundle else super()._images(unit)

    def _stand_ins(self, unit: Unit) -> list[Measurement]:
        return self._shared(unit, super()._stand_ins)

    def _shared(self, unit: Unit, measure: Callable[[Unit], list[Measurement]]) -> list[Measurement]:
        store, run, key = self._store, self._work.run, _key(self._work, unit)
        if key not in _MADE:
            rows = measure(unit)
            keys = [image_key(unit.bundle, case, unit.stages) for case in unit.cases if unit.kind == "images"]
            images = {name: image for name in keys if (image := read_image(store, run, name)) is not None}
            _MADE[key] = rows, images
        rows, images = _MADE[key]
        for name, image in images.items():
            write_image(store, run, name, image)
        return rows


def _key(work: EvaluationWork, unit: Unit) -> tuple[str, ...]:
    bundles = () if unit.kind == "stand_ins" else (work.bundles[unit.bundle].sha256,)
    return (repr(replace(work.config, bundle="any", out="any")), unit.identity, *bundles)
