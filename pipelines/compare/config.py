"""The configuration of `jobs/evaluate.py compare`."""

from dataclasses import field
from typing import Any

from lookalike.config import NOT_IDENTITY, POSITIONAL
from lookalike.errors import ConfigError
from lookalike.values import configuration
from pipelines.actors import ActorConfig

MOST_MODELS = 16
_OURS = ("bundle", "out", "actors")


@configuration()
class CompareConfig:
    """Put models side by side on one suite: metrics, paired differences, images. The same command again resumes."""

    models: list[str] = field(metadata={**NOT_IDENTITY, **POSITIONAL})
    """URIs of finished evaluations (scores.json or its prefix) or of bundles, which are evaluated first. They may be
    given before the flags, without ``--models``."""
    out: str = field(metadata=NOT_IDENTITY)
    """URI that receives compare.json (last), compare.html, compare.png, and the evaluations of bundles."""
    against: str | None = field(default=None, metadata=NOT_IDENTITY)
    """The model that the others are compared with, one of ``models`` or ``names``; by default the first."""
    names: list[str] = field(default_factory=list)
    """Names of the models in the result, one for each; by default the folder of each."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Settings of the evaluations of bundles (see ``jobs/evaluate.py run --help``), such as ``--evaluation.suite URI``;
    what is not given is taken from the first finished evaluation in ``models``, if there is one."""
    actors: ActorConfig = field(default_factory=ActorConfig, metadata=NOT_IDENTITY)
    """The actors that evaluate bundles; they change no result."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.models) <= MOST_MODELS:
            raise ConfigError(
                f"a comparison has 2 to {MOST_MODELS} models",
                value=len(self.models),
                fix="write their URIs after the subcommand: jobs/evaluate.py compare URI URI --out URI",
            )
        if self.names and len(self.names) != len(self.models):
            raise ConfigError(
                f"there are {len(self.models)} models", value=self.names, fix="give as many --names, or none"
            )
        if twice := {name for name in self.names if self.names.count(name) > 1}:
            raise ConfigError("two models have one name", value=sorted(twice), fix="give each model its own --names")
        if self.against is not None and self.against not in (*self.models, *self.names):
            raise ConfigError(
                "against is not one of the models", value=self.against, fix="write it as in --models or --names"
            )
        if ours := [name for name in _OURS if name in self.evaluation]:
            raise ConfigError(
                "evaluation has a setting that this job chooses",
                value=ours[0],
                fix="leave it out: models, out and actors are settings of the comparison",
            )

    @property
    def reference(self) -> int:
        """Index of the model that the others are compared with."""
        if self.against is None:
            return 0
        return (self.names if self.against in self.names else self.models).index(self.against)
