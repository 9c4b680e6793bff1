"""Filter that bounds the photos of one subject that are compared with each other."""

from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from lookalike.values import configuration
from pipelines.curate.filters.base import Photos, Scope, Trait
from pipelines.curate.rows import content_hashes


@configuration("filters.large_subject")
class LargeSubject:
    """Keep ``max_photos`` of a subject that has more, chosen by the hash of their bytes.

    The filters after it compare each photo of a subject with each other, so their memory and time grow with the square:
    2,500 photos took 0.06 GiB and 0.4 s in one task, 5,000 took 0.2 GiB and 1.3 s, and 50,000 would take 20 GiB.
    The choice depends only on the photos: a subject that grows keeps the same ones, except those with higher hashes
    than new ones.
    """

    max_photos: Annotated[int, Ge(2)] = 5000
    """Photos of one subject that are compared; those with the lowest hashes are kept."""

    scope: ClassVar[Scope] = "subject"
    summary: ClassVar[str] = "Photos of a subject that has more than are compared, chosen by hash"
    traits: ClassVar[tuple[Trait, ...]] = ()

    def drop(self, photos: Photos) -> np.ndarray:
        dropped_BN = np.zeros(photos.shape, bool)
        if photos.shape[1] > self.max_photos:
            places_BN = content_hashes(["large_subject"], photos["sha256"])
            beyond = np.argsort(places_BN, axis=1, kind="stable")[:, self.max_photos :]
            np.put_along_axis(dropped_BN, beyond, True, axis=1)
        return dropped_BN
