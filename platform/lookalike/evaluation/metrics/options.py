"""Read the settings of a metric (``--metrics '{NAME: {…}}'``)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from lookalike.errors import ConfigError

Options = TypeVar("Options")


def options_of(metrics: Mapping[str, Any], name: str, kind: type[Options]) -> Options | None:
    """Make the configuration ``kind`` from the settings of the metric ``name``; None if there are none, or ``false``.

    Raises ConfigError: the settings are not a mapping of its fields, or one of them has a value that is not valid.
    """
    given = metrics.get(name)
    if given is None or given is False:
        return None
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    fix = f"give some of {known}, as in --metrics '{{{name}: {{{known[0]}: …}}}}'"
    if not isinstance(given, Mapping):
        raise ConfigError(f"metrics.{name} is not a mapping", value=given, fix=fix)
    if unknown := sorted(set(map(str, given)) - set(known)):
        raise ConfigError(f"metrics.{name} has no such setting", value=unknown[0], fix=fix)
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(f"metrics.{name} lacks a setting ({error})", value=dict(given), fix=fix) from error
