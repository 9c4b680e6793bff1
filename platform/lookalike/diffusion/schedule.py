"""Denoising schedules (paper: multi-stage denoising): which conditions a sampler step sees, by its noise level."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lookalike.errors import ConfigError


@dataclass(frozen=True)
class ConditionWeights:
    """How much a sampler step sees of each condition: weights in [0, 1].

    A weight multiplies the condition's tokens in every softmax of the DiT's attention (its logarithm is added to the
    scores): 1 is what training sees. Towards 0 a step approaches continuously the step at 0, which does not compute the
    condition's tokens.
    """

    mllm: float
    references: float

    def __post_init__(self) -> None:
        if not (0 <= self.mllm <= 1 and 0 <= self.references <= 1):
            raise ConfigError("a condition's weight is outside [0, 1]", value=str(self), fix="use 0 to 1")

    def __str__(self) -> str:
        parts = {"mllm": self.mllm, "references": self.references}
        shown = [name if weight == 1 else f"{weight:.2f} {name}" for name, weight in parts.items() if weight]
        return "+".join(shown) or "none"


Schedule = Callable[[float], ConditionWeights]
"""Condition weights of a step that starts at this noise level: a :class:`DenoisingSchedule`, or any function."""


@dataclass(frozen=True)
class DenoisingSchedule:
    """The paper's schedule over the shifted noise level: MLLM tokens, then both conditions, then references.

    ``sigma >= tau1``: MLLM tokens alone. ``tau2 <= sigma < tau1``: both. ``sigma < tau2``: reference tokens alone.
    Lower values of both give up identity and follow the text more closely. With ``blend`` a condition's weight rises or
    falls linearly across its threshold.
    """

    tau1: float = 0.95
    """Below this noise level steps see the references."""
    tau2: float = 0.85
    """Below this noise level steps do not see the MLLM's tokens."""
    blend: float = 0.0
    """Width, in noise level, of the transition around each threshold; 0 is the paper's, without transition."""

    def __post_init__(self) -> None:
        if not self.tau1 >= self.tau2 >= 0:
            raise ConfigError(
                "the thresholds of the denoising schedule are out of order: noise falls from tau1 to tau2",
                value=f"tau1={self.tau1}, tau2={self.tau2}",
                fix="use tau1 >= tau2 >= 0",
            )
        if not 0 <= self.blend < math.inf:
            raise ConfigError(
                "the blend of a denoising schedule is negative or infinite",
                value=f"blend={self.blend}",
                fix="use a width in noise level such as 0.1, or 0",
            )

    def __call__(self, sigma: float) -> ConditionWeights:
        """Return the condition weights of a step that starts at this noise level."""
        return ConditionWeights(mllm=self._above(self.tau2, sigma), references=1 - self._above(self.tau1, sigma))

    def _above(self, threshold: float, sigma: float) -> float:
        if not self.blend:
            return float(sigma >= threshold)
        return min(1.0, max(0.0, (sigma - threshold) / self.blend + 0.5))


@dataclass(frozen=True)
class SamplerPlan:
    """Noise level and condition weights of each sampler step; ``str(plan)`` has one line for each."""

    sigmas: tuple[float, ...]
    """Noise level at which each step starts."""
    weights: tuple[ConditionWeights, ...]
    """What each step sees."""

    @classmethod
    def of(cls, schedule: Schedule, sigmas: Iterable[float]) -> "SamplerPlan":
        """Apply ``schedule`` to each noise level. Raises ConfigError unless it returns :class:`ConditionWeights`."""
        levels = tuple(sigmas)
        weights = tuple(schedule(sigma) for sigma in levels)
        for result in weights:
            if not isinstance(result, ConditionWeights):
                raise ConfigError(
                    "the denoising schedule returns no ConditionWeights",
                    value=result,
                    fix="return ConditionWeights(mllm, references)",
                )
        return cls(levels, weights)

    def without_references(self) -> "SamplerPlan":
        """Return the same steps for a call that has no references."""
        return SamplerPlan(self.sigmas, tuple(ConditionWeights(seen.mllm, 0.0) for seen in self.weights))

    def __str__(self) -> str:
        rows = zip(self.sigmas, self.weights, strict=True)
        return "\n".join(f"{step:3d}  sigma {sigma:.4f}  {seen}" for step, (sigma, seen) in enumerate(rows))

    def plot(self, axes: Any) -> None:
        """Plot both weights and the noise level over the steps on matplotlib ``axes``."""
        edges = range(len(self.sigmas) + 1)
        for name in ("mllm", "references"):
            axes.stairs([getattr(seen, name) for seen in self.weights], edges, label=name, fill=True, alpha=0.4)
        axes.plot(edges[:-1], self.sigmas, label="noise level", color="black", linewidth=1)
        axes.set_xlabel("step")
        axes.legend()


PRESET = "preset"
"""Names the schedule of a bundle's preset."""

NAMED_SCHEDULES = {
    "paper": DenoisingSchedule(0.95, 0.85),
    "mllm_only": DenoisingSchedule(0.0, 0.0),
    "both": DenoisingSchedule(math.inf, 0.0),
    "reference_only": DenoisingSchedule(math.inf, math.inf),
}

SCHEDULE_TITLES = {
    PRESET: "staged",
    "paper": "staged (τ .95 / .85)",
    "mllm_only": "MLLM only",
    "both": "both throughout",
    "reference_only": "references only",
}
"""For tables and captions."""


def denoising_schedule(value: Schedule | str, preset: str = "paper") -> Schedule:
    """Return the schedule that ``value`` names; a function is returned as it is.

    Args:
        value: ``paper``, ``mllm_only``, ``both``, ``reference_only``, ``"TAU1/TAU2"`` or ``"TAU1/TAU2/BLEND"``, or
            ``preset`` for the one that ``preset`` names.
        preset: the schedule of the bundle's preset, as one of the above.

    Raises ConfigError for an unknown name, and for thresholds that are out of order.
    """
    if not isinstance(value, str):
        return value
    names = [PRESET, *NAMED_SCHEDULES]
    if value == PRESET:
        value = preset
        names.remove(PRESET)
    if value in NAMED_SCHEDULES:
        return NAMED_SCHEDULES[value]
    parts = value.split("/")
    try:
        if len(parts) not in (2, 3):
            raise ValueError("two or three numbers")
        numbers = [float(part) for part in parts]
    except ValueError as error:
        raise ConfigError(
            "unknown denoising schedule (stages)",
            value=value,
            fix=f"use one of {', '.join(names)}, or TAU1/TAU2[/BLEND] such as 0.95/0.85",
        ) from error
    return DenoisingSchedule(*numbers)
