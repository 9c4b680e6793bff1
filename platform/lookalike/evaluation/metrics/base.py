"""The protocol of metrics, and the task that an image is measured against."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from lookalike.errors import ConfigError
from lookalike.pixels import crop_resize
from lookalike.process_wide import alone_in_process

Pixels = np.ndarray  # uint8 [H, W, 3]
ConfigT = TypeVar("ConfigT")

PROMPT_KINDS = ("place", "recolouring", "accessory", "style")
"""What a prompt may ask to change."""


@dataclass(frozen=True)
class Task:
    """What a generated image should show; what the model was given may differ (``--conditions shuffled``).

    Photos have the size of their files: a metric resizes them as its protocol says (:func:`at_size_of`).
    """

    case: str
    """Id of the case."""
    subject: str
    """The subject that the image should show."""
    prompt: str
    """The prompt that the image should follow."""
    references: Sequence[Pixels]
    """Photos of the subject that the model was given."""
    others: Sequence[Pixels]
    """Photos of another subject; empty if the suite has no other."""
    photos: Sequence[Pixels] = ()
    """All real photos of the subject that the suite has, the references among them; empty if it has no others."""
    class_name: str = ""
    """Class of the subject ("backpack"); may be empty."""
    plain_prompt: str = ""
    """The prompt with the class alone where a suite's template names the subject ("a backpack in the snow"); empty if
    it has no template."""
    prompt_kind: str = ""
    """What the prompt asks to change, one of :data:`PROMPT_KINDS`; empty if unknown."""
    targets: Sequence[Pixels] = ()
    """Those of the subject's photos that are targets of the suite: of a held-out data set, photos that training never
    saw. Empty if the suite has no targets."""

    def __post_init__(self) -> None:
        if self.prompt_kind not in ("", *PROMPT_KINDS):
            raise ConfigError(
                f"case {self.case} has no such kind of prompt",
                value=self.prompt_kind,
                fix=f"use one of {list(PROMPT_KINDS)}",
            )


class Settings(Protocol):
    """The settings of an evaluation that choose metrics and their models, see ``EvaluateConfig``."""

    @property
    def embedder(self) -> str: ...
    @property
    def clip(self) -> str | None: ...
    @property
    def dino(self) -> str | None: ...
    @property
    def metrics(self) -> Mapping[str, Any]: ...


class Metric(Protocol):
    """A metric of single images, or several that share their models.

    Each value belongs to one image, and an estimate is their mean, with an interval that resamples subjects. Values
    must not depend on the other images of the call, since their number is a matter of speed. A metric with values that
    are 0 or 1 names them in ``shares``: the interval of a share is another one.
    """

    labels: ClassVar[Mapping[str, str]]
    """Name of each value in ``scores.json`` -> heading in the report. Gates refer to the name."""
    likeness: ClassVar[Sequence[str]]
    """Those of the names that say how much an image resembles the subject: they are also measured of real photos, which
    gives their ceiling and floors."""

    @classmethod
    def create(cls, settings: Settings, device: str) -> "Metric | None":
        """The metric with its models on ``device``; None if the settings do not turn it on.

        Raises InputError if the model does not exist.
        """

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> Sequence[Mapping[str, float]]:
        """For each image a value by name; a name is left out if the value cannot be measured for that image."""


class SetMetric(Protocol):
    """A metric of all images of one subject by one bundle and schedule together, such as their variety."""

    labels: ClassVar[Mapping[str, str]]
    """As of :class:`Metric`."""

    @classmethod
    def create(cls, settings: Settings, device: str) -> "SetMetric | None":
        """As of :class:`Metric`."""

    def __call__(self, images: Sequence[Pixels], tasks: Sequence[Task]) -> Mapping[str, float]:
        """The values of the images, all of one subject, each with the task that it was generated for; a name is left
        out if it cannot be measured."""


def at_size_of(image: Pixels, photos: Sequence[Pixels]) -> list[Pixels]:
    """Centre crops of ``photos`` at the size of ``image``, so that sharpness does not change a similarity."""
    return [crop_resize(photo, *image.shape[:2]) for photo in photos]


def settings_of(settings: Settings, name: str, config_class: type[ConfigT], *, flag: str = "") -> ConfigT:
    """Read the settings of the metric ``name`` as its configuration class, a frozen dataclass with defaults.

    ``flag`` names the setting of the model that turns the metric on, if any. Raises ConfigError: not a mapping, an
    unknown setting, a value that is not valid, or settings of a metric that is not turned on.
    """
    if name not in settings.metrics:
        return config_class()
    given = settings.metrics[name]
    fields = [item.name for item in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise ConfigError(f"metrics.{name} is not a mapping", value=given, fix=f"give settings of {fields}, or {{}}")
    if unknown := [key for key in given if key not in fields]:
        raise ConfigError(f"metrics.{name} has no such setting", value=unknown[0], fix=f"choose from {fields}")
    if flag and not getattr(settings, flag):
        raise ConfigError(
            f"metrics.{name} has settings, but no model", value=dict(given), fix=f"name a model with --{flag}"
        )
    try:
        return config_class(**given)
    except TypeError as error:
        raise ConfigError(f"metrics.{name} lacks a setting", value=dict(given), fix=f"give all of {fields}") from error
    except ConfigError as error:
        raise ConfigError(f"metrics.{name}.{error.what}", value=error.value, fix=error.fix) from error


@contextmanager
def exact() -> Iterator[None]:
    """Run a model without gradients and in full float32, also where a GPU would round convolutions to TF32.

    The setting is the process's, so one thread at a time runs such a model.
    """
    import torch

    with (
        alone_in_process(),
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
    ):
        yield
