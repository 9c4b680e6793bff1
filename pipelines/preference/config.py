"""The configurations of `jobs/preference.py`, one for each subcommand."""

from dataclasses import field
from typing import Annotated

from annotated_types import Ge, Le

from lookalike.config import NOT_IDENTITY
from lookalike.errors import ConfigError
from lookalike.values import Count, NonNegative, Seed, Share, configuration

QUESTIONS = {
    "identity": "Which image shows the subject of the reference photos?",
    "prompt": "Which image shows what the prompt says?",
    "overall": "Which image shows the subject of the reference photos, in the scene of the prompt?",
}
"""Criterion -> the question that a judge reads, unless ``questions`` overrides it."""
MODELS = ("a", "b", "c", "d")
"""Names of the models in results. More would need more pairs than people have patience for."""


@configuration()
class MakeConfig:
    """Make a page of blind pairs from finished evaluations on one suite. It loads nothing from other places."""

    a: str = field(metadata=NOT_IDENTITY)
    """URI of an evaluation (the ``--out`` of jobs/evaluate.py), whose images are compared."""
    b: str = field(metadata=NOT_IDENTITY)
    """URI of a second evaluation, on the same suite."""
    out: str = field(metadata=NOT_IDENTITY)
    """URI that receives preference.html (for the judges) and pairs.json (its key: keep it from them)."""
    c: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a third evaluation."""
    d: str | None = field(default=None, metadata=NOT_IDENTITY)
    """URI of a fourth evaluation."""
    criteria: list[str] = field(default_factory=lambda: ["overall"])
    """What is asked of each pair: ``identity``, ``prompt``, ``overall``; may be repeated."""
    questions: dict[str, str] = field(default_factory=dict)
    """Other texts of the questions, by criterion: ``'{overall: "Which image do you prefer?"}'``."""
    max_pairs: Annotated[Count, Le(5_000)] = 100
    """Pairs of images on the page, spread evenly over subjects and over pairs of models."""
    checks: Annotated[NonNegative, Le(100)] = 8
    """Attention checks: pairs of a real photo of the subject and one of another subject."""
    repeats: Annotated[NonNegative, Le(100)] = 8
    """Pairs that are shown a second time, with sides swapped."""
    max_side: Annotated[int, Ge(64), Le(2_048)] = 512
    """Longest side of an image on the page, in pixels; larger images are scaled down."""
    max_mib: Annotated[Count, Le(512)] = 32
    """Largest size of the page; above it nothing is written."""
    seed: Seed = 0
    """Seeds the choice of pairs."""

    def __post_init__(self) -> None:
        if not self.criteria or len(set(self.criteria)) < len(self.criteria):
            raise ConfigError("criteria is empty or has one twice", value=self.criteria, fix="use --criteria overall")
        for name in [*self.criteria, *self.questions]:
            if name not in QUESTIONS:
                raise ConfigError("not a criterion", value=name, fix=f"choose from {list(QUESTIONS)}")
        for name, text in self.questions.items():
            if not isinstance(text, str) or not 0 < len(text.strip()) <= 300:
                raise ConfigError(
                    f"the question of {name} is not a text of 1 to 300 characters", value=text, fix="write one sentence"
                )
        if self.d is not None and self.c is None:
            raise ConfigError("d is set, but c is not", fix="name the third evaluation with --c")

    @property
    def evaluations(self) -> dict[str, str]:
        """URIs of the evaluations by name."""
        uris = {name: getattr(self, name) for name in MODELS}
        return {name: uri for name, uri in uris.items() if uri is not None}


@configuration()
class ReadConfig:
    """Read the judges' choices, and write win rates, strengths and agreement with their intervals."""

    pairs: str = field(metadata=NOT_IDENTITY)
    """URI of the pairs.json that belongs to the page, or of the folder that holds it."""
    choices: list[str] = field(metadata=NOT_IDENTITY)
    """URIs of files that the page exported, or of folders with them (all their ``*.json``); may be repeated."""
    out: str = field(metadata=NOT_IDENTITY)
    """URI that receives preference.json and preference.md."""
    min_right: Share = 0.8
    """A judge counts with at least this share of the attention checks right; a tie is not right."""
    min_consistent: Share = 0.25
    """A judge counts with at most the other share of the repeated pairs answered with the opposite image."""
    seed: Seed = 0
    """Seeds the resampling of the intervals."""

    def __post_init__(self) -> None:
        if not self.choices:
            raise ConfigError("choices is empty", fix="name the files that the page exported, --choices anna.json")
