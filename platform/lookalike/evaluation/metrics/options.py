"""Read the settings of a metric that settings turn on or off (``--metrics '{NAME: {…}}'`` or ``'{NAME: false}'``)."""

from typing import TypeVar

from lookalike.evaluation.metrics.base import Settings, settings_of

Options = TypeVar("Options")


def options_of(settings: Settings, name: str, kind: type[Options]) -> Options | None:
    """Make the configuration ``kind`` from the settings of the metric ``name``; None if there are none, or ``false``.

    Raises ConfigError: the settings are not a mapping of its fields, lack one, or one of them is not valid.
    """
    return None if settings.metrics.get(name, False) is False else settings_of(settings, name, kind)
