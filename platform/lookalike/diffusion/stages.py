"""Multi-stage denoising: how much of which condition each step of the sampler sees, by its noise level."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lookalike.errors import ConfigError


@dataclass(frozen=True)
class Conditions:
    """What one step sees of each condition, as a weight in [0, 1].

    The weight multiplies the condition's tokens in every softmax of the DiT's attention (its logarithm is added to the
    scores). So 1 is what training sees, and towards 0 the step approaches, without a jump, the one at 0, in which the
    condition's tokens are not computed at all.
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


Stages = Callable[[float], Conditions]
"""Conditions of a step that starts at this noise level: a :class:`StageSchedule`, or any function of yours."""


@dataclass(frozen=True)
class StageSchedule:
    """The paper's stages over the shifted noise level: MLLM, then both, then references.

    ``sigma >= tau1``: MLLM tokens alone. ``tau2 <= sigma < tau1``: both. ``sigma < tau2``: reference tokens alone.
    Lower values of both trade identity for following the text. With ``blend`` the weight of a condition does not jump
    at its threshold but rises or falls linearly across it.
    """

    tau1: float = 0.95
    """Where references join."""
    tau2: float = 0.85
    """Where the MLLM leaves."""
    blend: float = 0.0
    """Width, in noise level, of the passage around each threshold; 0 is the paper's hard stages."""

    def __post_init__(self) -> None:
        if not self.tau1 >= self.tau2 >= 0:
            raise ConfigError(
                "stages out of order: noise falls from tau1 to tau2",
                value=f"tau1={self.tau1}, tau2={self.tau2}",
                fix="use tau1 >= tau2 >= 0",
            )
        if not 0 <= self.blend < math.inf:
            raise ConfigError("the blend of stages is a width", value=f"blend={self.blend}", fix="use 0 or more")

    def __call__(self, sigma: float) -> Conditions:
        """Conditions of a step that starts at this noise level."""
        return Conditions(mllm=self._above(self.tau2, sigma), references=1 - self._above(self.tau1, sigma))

    def _above(self, threshold: float, sigma: float) -> float:
        if not self.blend:
            return float(sigma >= threshold)
        return min(1.0, max(0.0, (sigma - threshold) / self.blend + 0.5))


@dataclass(frozen=True)
class Plan:
    """The steps of a sampler; ``str(plan)`` has one line for each."""

    sigmas: tuple[float, ...]
    """Noise level at which each step starts."""
    conditions: tuple[Conditions, ...]
    """What it sees."""

    @classmethod
    def of(cls, stages: Stages, sigmas: Iterable[float]) -> "Plan":
        """The plan of these steps.

        Raises:
            ConfigError: a function that does not give :class:`Conditions`.
        """
        levels = tuple(sigmas)
        conditions = tuple(stages(sigma) for sigma in levels)
        for found in conditions:
            if not isinstance(found, Conditions):
                raise ConfigError("stages give no Conditions", value=found, fix="return Conditions(mllm, references)")
        return cls(levels, conditions)

    def without_references(self) -> "Plan":
        """The same steps for a call that has no references."""
        return Plan(self.sigmas, tuple(Conditions(seen.mllm, 0.0) for seen in self.conditions))

    def __str__(self) -> str:
        rows = zip(self.sigmas, self.conditions, strict=True)
        return "\n".join(f"{step:3d}  sigma {sigma:.4f}  {seen}" for step, (sigma, seen) in enumerate(rows))

    def plot(self, axes: Any) -> None:
        """Draw both weights and the noise level over the steps on matplotlib ``axes``."""
        edges = range(len(self.sigmas) + 1)
        for name in ("mllm", "references"):
            axes.stairs([getattr(seen, name) for seen in self.conditions], edges, label=name, fill=True, alpha=0.4)
        axes.plot(edges[:-1], self.sigmas, label="noise level", color="black", linewidth=1)
        axes.set_xlabel("step")
        axes.legend()


PRESET = "preset"
"""The name of whatever a bundle's preset says."""

NAMED_STAGES = {
    "paper": StageSchedule(0.95, 0.85),
    "mllm_only": StageSchedule(0.0, 0.0),
    "both": StageSchedule(math.inf, 0.0),
    "reference_only": StageSchedule(math.inf, math.inf),
}


STAGE_TITLES = {
    PRESET: "staged",
    "paper": "staged (τ .95 / .85)",
    "mllm_only": "MLLM only",
    "both": "both throughout",
    "reference_only": "references only",
}
"""For tables and captions."""


def stages_of(value: Stages | str, preset: str = "paper") -> Stages:
    """A schedule by name (``paper``, ``mllm_only``, ``both``, ``reference_only``, or ``preset`` for that of a preset),
    as ``"TAU1/TAU2"`` or ``"TAU1/TAU2/BLEND"``, or a function as it is.

    Raises:
        ConfigError: neither, or stages out of order.
    """
    if not isinstance(value, str):
        return value
    names = [PRESET, *NAMED_STAGES]
    if value == PRESET:
        value = preset
        names.remove(PRESET)
    if value in NAMED_STAGES:
        return NAMED_STAGES[value]
    parts = value.split("/")
    try:
        if len(parts) not in (2, 3):
            raise ValueError("two or three numbers")
        numbers = [float(part) for part in parts]
    except ValueError as error:
        raise ConfigError(
            "unknown stages", value=value, fix=f"use one of {', '.join(names)}, or TAU1/TAU2[/BLEND] such as 0.95/0.85"
        ) from error
    return StageSchedule(*numbers)
