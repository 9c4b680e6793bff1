"""Customers of the sample world and their requests, for the benches of the fleet.

Everything lies below one folder; what exists is reused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lookalike.bundles.build import materialise
from lookalike.models.presets import load_preset
from lookalike.storage import list_versions, open_store
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.entry import ray_session
from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.config import SampleWorldConfig

CUSTOMERS = 8
_PHOTOS = SampleWorldConfig(seed=83, subjects=CUSTOMERS, views=8, defects=False)
_OTHERS = SampleWorldConfig(seed=84, subjects=8, views=4, defects=False)


@dataclass(frozen=True)
class FleetWorld:
    """The base, the data set of other subjects, and a folder of photos for each customer."""

    base: str
    others: str
    photos: list[Path]


def fleet_world(folder: Path) -> FleetWorld:
    """Make what is missing below ``folder``."""
    base, others, photos = folder / "base", folder / "others", folder / "photos"
    if not (base / "bundle.json").exists():
        materialise(load_preset("mini"), base)
    if not list_versions(open_store(str(others / "dataset"))):
        with ray_session():
            ingest(IngestConfig(source="sample", raw=str(others / "raw"), sample=_OTHERS))
            curate(CurateConfig(raw=str(others / "raw"), dataset=str(others / "dataset"), actors=ActorConfig(count=0)))
            ingest(IngestConfig(source="sample", raw=str(folder / "raw"), photos=str(photos), sample=_PHOTOS))
    subjects = sorted(path for path in photos.iterdir() if path.is_dir())
    assert len(subjects) == CUSTOMERS, subjects
    return FleetWorld(str(base), str(others / "dataset"), subjects)


def write_request(requests: Path, number: int, photos: Path, **settings: Any) -> dict[str, Any]:
    """Write the request of customer ``number`` into the folder ``requests``, and return its settings."""
    request = {"customer": f"c{number:02d}", "subject": "thing", "photos": str(photos), "seed": number, **settings}
    requests.mkdir(parents=True, exist_ok=True)
    (requests / f"c{number:02d}.yaml").write_text(yaml.safe_dump(request))
    return request
