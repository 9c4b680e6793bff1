"""Filter of images whose licence or consent does not allow their use."""

from typing import ClassVar

import numpy as np

from lookalike.errors import ConfigError
from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait
from pipelines.curate.rows import CONFLICT


@configuration("filters.licence")
class Licence:
    """Drop images whose licence or consent is on no allow-list, or whose two licences differ.

    An image without a licence is on no allow-list. Names are compared as they are written, without regard to case:
    ``CC BY 4.0`` is not ``CC-BY-4.0``, since similar names may be different licences.
    """

    allowed: list[str] | None = None
    """Allowed values of ``licence`` or ``license`` in ``key.json`` (SPDX ids, any case). null: any value, or none."""
    consents: list[str] | None = None
    """Allowed values of ``consent`` in ``key.json``, for example ``[training]``. null: any value, or none."""

    scope: ClassVar[Scope] = "image"
    summary: ClassVar[str] = "Images whose licence or consent is not allowed, or whose two licences differ"
    traits: ClassVar[tuple[Trait, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("allowed", "consents"):
            if getattr(self, name) == []:
                raise ConfigError(
                    f"filters.licence.{name} is empty and allows nothing",
                    value=[],
                    fix="list what is allowed; null allows anything",
                )

    def drop(self, photos: Photos) -> np.ndarray:
        refused = np.asarray(photos["licence"] == CONFLICT, bool)
        for column, allowed in (("licence", self.allowed), ("consent", self.consents)):
            if allowed is not None:
                known = {name.strip().casefold() for name in allowed}
                refused |= np.array([value.strip().casefold() not in known for value in photos[column].tolist()], bool)
        return refused
