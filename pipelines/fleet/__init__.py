"""Many finetunes at once: requests from files, trained together in shared passes of one base."""

from pipelines.fleet.config import FleetConfig
from pipelines.fleet.run import fleet

__all__ = ["FleetConfig", "fleet"]
