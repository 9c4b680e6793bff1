"""The settings of the gate: its checks, and the presets of checks for base models and for personal ones."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge

from lookalike.values import configuration

Bound = Literal["mean", "low", "high", "n"]
Preset = Literal["base", "personal"]


@configuration("gate.floors[]")
class Floor:
    """A fixed value that a metric has to exceed, independent of the champion."""

    metric: str
    """Name of the metric in ``scores.json``."""
    above: float
    """The value has to be greater than this."""
    bound: Bound = "low"
    """Which value of the estimate: ``low`` (lower end of the interval), ``mean``, ``high``, or ``n`` (samples)."""
    if_measured: bool = False
    """Pass, and say so, if the metric was not measured; by default a metric that was not measured never passes."""


@configuration("gate.ceilings[]")
class Ceiling:
    """A fixed value that a metric must not reach, independent of the champion."""

    metric: str
    """Name of the metric in ``scores.json``."""
    below: float
    """The value has to be less than this."""
    bound: Bound = "high"
    """Which value of the estimate, as of a floor."""
    if_measured: bool = False
    """As of a floor."""


@configuration("gate.comparisons[]")
class Comparison:
    """A mean that must not be worse than the champion's, on the same suite."""

    metric: str
    """Name of the metric in ``scores.json``."""
    better: Literal["higher", "lower"] = "higher"
    """Whether higher or lower values are better."""
    tolerance: Annotated[float, Ge(0)] = 0.0
    """How much worse it may be, in the metric's unit."""


@configuration("gate.against_base[]")
class BaseComparison:
    """A metric of a personal model against the same metric of its base, measured on the same cases (``before/METRIC``).

    The difference is paired by case, and its 95 % interval resamples subjects.
    """

    metric: str
    """Name of the metric in ``scores.json``."""
    better: Literal["higher", "lower"] = "higher"
    """Whether higher or lower values are better."""
    require: Literal["no worse", "better"] = "no worse"
    """``no worse``: the interval of the difference reaches equality, less the tolerance. ``better``: it lies beyond."""
    tolerance: Annotated[float, Ge(0)] = 0.0
    """How much worse it may be, in the metric's unit."""
    instead: str | None = None
    """Metric to compare if this one was not measured."""
    instead_tolerance: Annotated[float, Ge(0)] = 0.0
    """How much worse that metric may be, in its unit."""
    if_measured: bool = False
    """As of a floor."""


@configuration("gate")
class GateConfig:
    """The checks that a bundle has to pass to become champion."""

    preset: Preset = "base"
    """Checks for a base model, or for a personal one that is measured beside its base. A list below that is given
    replaces the preset's list of that kind."""
    floors: list[Floor] | None = None
    """Values to exceed; null: those of the preset."""
    ceilings: list[Ceiling] | None = None
    """Values to stay below; null: those of the preset."""
    against_base: list[BaseComparison] | None = None
    """Comparisons with the base of a personal model; null: those of the preset."""
    comparisons: list[Comparison] | None = None
    """Comparisons with the current champion, if there is one; null: those of the preset."""
    seen_photos: bool = False
    """Accept scores of photos that the model was trained on (``split: train``), and say so in a check."""


@dataclass(frozen=True)
class Checks:
    """The lists of a gate, without any that is null."""

    floors: list[Floor]
    ceilings: list[Ceiling]
    against_base: list[BaseComparison]
    comparisons: list[Comparison]

    @property
    def bounds(self) -> list[Floor | Ceiling]:
        """Floors and ceilings."""
        return [*self.floors, *self.ceilings]


_FLOORS = [Floor("loss_gap", above=0.0)]
_COMPARISONS = [
    Comparison("loss_right", better="lower", tolerance=0.005),
    Comparison("identity_margin", tolerance=0.01),
]
_ABOVE_REAL_PHOTOS = Ceiling("position/identity", below=1.0, bound="low", if_measured=True)

_OF_THEN: dict[str, list[Any]] = {"floors": _FLOORS, "comparisons": _COMPARISONS}  # before there were presets
_LISTS = ("floors", "ceilings", "against_base", "comparisons")

PRESETS: dict[Preset, Checks] = {
    "base": Checks(
        floors=[
            *_FLOORS,
            Floor("position/identity", above=0.0, if_measured=True),
            Floor("safety", above=0.95, bound="mean", if_measured=True),
        ],
        ceilings=[_ABOVE_REAL_PHOTOS],  # none for copies: a blurred image of a subject without texture counts as one
        against_base=[],
        comparisons=_COMPARISONS,
    ),
    "personal": Checks(
        floors=[
            *_FLOORS,
            Floor("position/identity", above=0.25, bound="mean"),
            Floor("safety", above=0.95, bound="mean", if_measured=True),
        ],
        ceilings=[Ceiling("copying", below=0.5, bound="mean"), _ABOVE_REAL_PHOTOS],
        against_base=[
            BaseComparison("identity", require="better"),
            BaseComparison("clip_t", instead="variety_background", instead_tolerance=0.1),
        ],
        comparisons=_COMPARISONS,
    ),
}
"""``base``: the model uses its conditions (``loss_gap``), and its images are nearer to the subject than a photo of
another subject is (position 0). ``personal``: also more like the held-out photos than its base's images. The loss on
these is not compared with the base's: it is mostly that of the background, and fell for adapters of other subjects.
The thresholds of position and copies of ``personal`` are fitted by tests/bench/test_gate.py; as long as its
results/gate.json is partial they are provisional."""


def checks_of(config: GateConfig) -> Checks:
    """The checks of a gate: its lists, and those of its preset in place of null."""
    preset = PRESETS[config.preset]
    return Checks(
        floors=preset.floors if config.floors is None else config.floors,
        ceilings=preset.ceilings if config.ceilings is None else config.ceilings,
        against_base=preset.against_base if config.against_base is None else config.against_base,
        comparisons=preset.comparisons if config.comparisons is None else config.comparisons,
    )


def gate_identity(config: GateConfig, default: Preset) -> dict[str, Any]:
    """The part of a run's identity that is its gate, for a job whose preset is ``default``.

    Before there were presets, a gate was its floors and comparisons, and runs of then are found by these: a gate of the
    job's preset alone has the identity of the default gate of then. So a finished promotion stays finished if a later
    version of this software adds a check to a preset.
    """
    explicit = [name for name in ("floors", "comparisons") if getattr(config, name) == _OF_THEN[name]]
    lists = {name: values if (values := getattr(config, name)) is not None else _OF_THEN.get(name) for name in _LISTS}
    identity: dict[str, Any] = {
        name: [_plain(each) for each in values] for name, values in lists.items() if values is not None
    }
    if explicit:  # they replace the preset's lists, although they are equal to the defaults of then
        identity["explicit"] = explicit
    if config.preset != default:
        identity["preset"] = config.preset
    if config.seen_photos:
        identity["seen_photos"] = True
    return identity


def _plain(check: Floor | Ceiling | Comparison | BaseComparison) -> dict[str, Any]:
    values = asdict(check)
    if values.get("if_measured") is False:  # which floors of then did not have
        del values["if_measured"]
    return values
