"""Multi-stage denoising: which condition each step of the sampler sees, by its noise level."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lookalike.errors import ConfigError


@dataclass(frozen=True)
class Conditions:
    """What one step computes and sees; what it does not use adds no tokens at all."""

    mllm: bool
    references: bool

    def __str__(self) -> str:
        return "+".join(name for name, used in (("mllm", self.mllm), ("references", self.references)) if used) or "none"


@dataclass(frozen=True)
class StageSchedule:
    """The paper's hard stages over the shifted noise level: MLLM, then both, then references.

    ``sigma >= tau1``: MLLM tokens alone. ``tau2 <= sigma < tau1``: both. ``sigma < tau2``: reference tokens alone.
    Lower values of both trade identity for following the text.
    """

    tau1: float = 0.95
    """Where references join."""
    tau2: float = 0.85
    """Where the MLLM leaves."""

    def __post_init__(self) -> None:
        if not self.tau1 >= self.tau2 >= 0:
            raise ConfigError(
                "stages out of order: noise falls from tau1 to tau2",
                value=f"tau1={self.tau1}, tau2={self.tau2}",
                fix="use tau1 >= tau2 >= 0",
            )

    def at(self, sigma: float) -> Conditions:
        """Conditions of a step that starts at this noise level."""
        return Conditions(mllm=sigma >= self.tau2, references=sigma < self.tau1)

    def plan(self, sigmas: Iterable[float]) -> list[Conditions]:
        """Conditions of every step of a sampler."""
        return [self.at(sigma) for sigma in sigmas]

    def table(self, sigmas: Iterable[float]) -> str:
        """The plan for people: one line a step."""
        return "\n".join(f"{step:3d}  sigma {sigma:.4f}  {self.at(sigma)}" for step, sigma in enumerate(sigmas))


NAMED_STAGES = {
    "paper": StageSchedule(0.95, 0.85),
    "mllm_only": StageSchedule(0.0, 0.0),
    "both": StageSchedule(math.inf, 0.0),
    "reference_only": StageSchedule(math.inf, math.inf),
}


def stages_of(value: "StageSchedule | str") -> StageSchedule:
    """A schedule by name (``paper``, ``mllm_only``, ``both``, ``reference_only``) or as ``"TAU1/TAU2"``.

    Raises:
        ConfigError: neither, or stages out of order.
    """
    if isinstance(value, StageSchedule):
        return value
    if value in NAMED_STAGES:
        return NAMED_STAGES[value]
    try:
        tau1, tau2 = (float(part) for part in value.split("/"))
    except ValueError as error:
        names = ", ".join(NAMED_STAGES)
        raise ConfigError(
            "unknown stages", value=value, fix=f"use one of {names}, or TAU1/TAU2 such as 0.95/0.85"
        ) from error
    return StageSchedule(tau1, tau2)
