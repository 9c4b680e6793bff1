"""``scores.json``: the metrics of an evaluation, its bundle and suite, and the hash of its measurements."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lookalike.config import fingerprint
from lookalike.documents import parse_record, render_json
from lookalike.errors import ConfigError, InputError
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.measurements import MEASUREMENTS, estimates, evaluation_of
from lookalike.evaluation.metrics import SHARES
from lookalike.values import MAX_COUNT, check_values

ConditionMode = Literal["right", "shuffled"]

SCORES = "scores.json"
GRID = "grid.png"
EXAMPLES = "examples.json"
_SAME_MEAN = 1e-9  # relative: sums in another order
_SAME_END = 0.05  # of the interval's width: another version of scipy may resample otherwise


@dataclass(frozen=True)
class Source:
    """An input of the evaluation, pinned by its content."""

    uri: str
    """Its place at the time of the evaluation."""
    sha256: str
    """Bundle: fingerprint of its components. Suite: fingerprint of the snapshot's manifest."""
    version: int | None = None
    """Version of the snapshot; None for a bundle."""


@dataclass(frozen=True)
class Calibration:
    """The values of one metric on the calibration images: they change if its model or its code does."""

    values: dict[str, float]
    """Value by calibration image (of a metric of a subject's images: by subject), rounded to 6 decimals."""
    sha256: str
    """Fingerprint of ``values``; other processors change the last decimals, so values are compared, not this."""
    revision: str = ""
    """Revision of the metric's model; empty for a metric without one."""


@dataclass(frozen=True)
class Judge:
    """The judge of an evaluation, known by its values on fixed images (:mod:`lookalike.evaluation.calibration`)."""

    images_sha256: str
    """Fingerprint of the calibration images."""
    metrics: dict[str, Calibration]
    """Calibration by the metric's name."""


@dataclass(frozen=True)
class Scores:
    """The result of one evaluation.

    Metrics (each an :class:`~lookalike.evaluation.estimates.Estimate`; the interval resamples subjects):
    ``loss_right``, ``loss_shuffled``: held-out flow-matching loss with the sample's own conditions and with those of
    another subject, on the same noise at the same levels; ``loss_gap``: shuffled − right, sample by sample.
    ``mllm_only/loss_*``: the same without reference latents. ``identity``: cosine of the image embeddings of a
    generated image and its references; ``identity_margin``: the same minus the cosine to another subject's
    references. ``SETTING/identity``: by another denoising schedule. ``clip_i``, ``clip_t``, ``dino_i``: if their models
    were named.
    """

    bundle: Source
    suite: Source
    conditions: ConditionMode
    """``shuffled``: every sample got another subject's conditions, a probe that a gate has to refuse."""
    metrics: dict[str, Estimate]
    embedder: str = ""
    """Revision of the embedder behind ``identity``."""
    base: Source | None = None
    """The bundle that this one was compared with; its metrics are ``before/NAME``."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the evaluation."""
    measurements_sha256: str | None = None
    """Hash of ``measurements.parquet``, which lies beside; None in scores of earlier versions of this software."""
    judge: Judge | None = None
    """The calibration of the metrics; None in scores of earlier versions of this software."""
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How each metric was measured: its settings and model, by the metric's name; empty in earlier scores."""

    @property
    def prompts(self) -> str:
        """What images were generated of: the ``suite``'s own prompts, or the name of others (``--prompts``)."""
        return str(self.config.get("prompts") or "suite")

    def to_json(self) -> bytes:
        """Return the bytes of ``scores.json``."""
        values = asdict(self)
        for name in ("measurements_sha256", "judge", "protocols"):
            if not values[name]:  # the hash of earlier scores, which lack it, stands in promotion logs
                del values[name]
        return render_json(values)

    def evaluation(self) -> dict[str, Any]:
        """Describe what was measured, as the header of the measurements does."""
        return {
            "bundle": self.bundle.sha256,
            "suite": self.suite.sha256,
            "conditions": self.conditions,
            "seed": self.config.get("seed", 0),
        }

    def proven(self, measurements: bytes, where: str) -> "Scores":
        """Return these scores with estimates computed again from ``measurements``, which were read at ``where``.

        Raises InputError: the measurements are not those of these scores, or give other estimates.
        """
        fix = f"restore scores.json and {MEASUREMENTS} of one evaluation, or evaluate the bundle again"
        sha256 = hashlib.sha256(measurements).hexdigest()
        if self.measurements_sha256 not in (None, sha256):
            raise InputError(
                f"the measurements were changed: their SHA-256 is {sha256}, scores.json has {self.measurements_sha256}",
                value=where,
                fix=fix,
            )
        of = evaluation_of(measurements, where)
        if of not in (None, self.evaluation()):
            raise InputError(
                f"the measurements are of {of}, but scores.json is of {self.evaluation()}", value=where, fix=fix
            )
        seed = self.config.get("seed", 0)
        if type(seed) is not int or seed < 0:
            raise InputError("the seed of the evaluation is not a whole number", value=seed, fix=fix)
        found = estimates(measurements, seed, where, SHARES)
        if differing := self._other_than(found):
            earlier = estimates(measurements, seed, where)  # when the intervals of shares were those of means
            differing = [name for name in differing if name in self._other_than(earlier)]
        for name in differing:
            raise InputError(
                f"scores.json has {_shown(self.metrics.get(name))} for {name}, but its measurements give"
                f" {_shown(found.get(name))}",
                value=where,
                fix=fix,
            )
        return replace(self, metrics=found)

    def _other_than(self, found: Mapping[str, Estimate]) -> list[str]:
        """The names of estimates that differ from those ``found``, or that only one of both has."""
        return [
            name
            for name in sorted(self.metrics.keys() | found.keys())
            if name not in found or name not in self.metrics or not _agree(self.metrics[name], found[name])
        ]

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Scores":
        """Parse ``scores.json``; ``where`` names the file in errors. Raises InputError for another kind of file."""
        fix = "name a scores.json of jobs/evaluate.py"
        scores = parse_record(cls, data, where, fix=fix)
        for name, estimate in scores.metrics.items():  # NaN stands for values that were not finite
            infinite = any(math.isinf(value) for value in (estimate.mean, estimate.low, estimate.high))
            if infinite or not 0 <= estimate.n <= MAX_COUNT:
                raise InputError(f"the scores file is damaged: {name} is {_shown(estimate)}", value=where, fix=fix)
        for name, calibration in scores.judge.metrics.items() if scores.judge else ():
            if not all(map(math.isfinite, calibration.values.values())):
                raise InputError(f"the calibration of {name} has a value that is not finite", value=where, fix=fix)
            if calibration.sha256 != fingerprint(calibration.values):
                raise InputError(f"the calibration of {name} was changed", value=where, fix=fix)
        try:
            for part in filter(None, (scores.bundle, scores.suite, scores.base, scores)):
                check_values(part)
        except ConfigError as error:
            raise InputError(f"the scores file is damaged: {error.what}", value=where, fix=fix) from error
        return scores


def _agree(written: Estimate, found: Estimate) -> bool:
    ends = _SAME_END * (found.high - found.low) + _SAME_MEAN
    return (
        written.n == found.n
        and _equal(written.mean, found.mean, _SAME_MEAN * max(1.0, abs(found.mean)))
        and _equal(written.low, found.low, ends)
        and _equal(written.high, found.high, ends)
    )


def _equal(one: float, other: float, tolerance: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= tolerance


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return "nothing"
    return f"{estimate.mean:.6g} ({estimate.low:.6g} to {estimate.high:.6g}, n={estimate.n})"
